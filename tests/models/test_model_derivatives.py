"""Derivatives of whole models beyond the first, through kernels, against plain operations of torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import timm
import torch
from families import CLASSES, shallow
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vssm_kernels import use_backend

every_class = pytest.mark.parametrize("kind", [*map(shallow, CLASSES)], ids=lambda kind: kind[0])


@pytest.fixture(autouse=True)
def attention_with_every_derivative() -> Iterator[None]:
    """Of torch's fused attention there is the first alone, backwards."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def small(kind: tuple[str, dict]) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(kind[0], **{"num_classes": 3, **kind[1]}).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@every_class
def test_gradient_penalty(kind: tuple[str, dict]) -> None:
    """The penalty itself, and its gradient by every parameter."""
    model = small(kind)

    def penalty_and_gradients() -> list[Tensor]:
        x = images().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        parameters = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return [penalty.detach(), *parameters]

    found = penalty_and_gradients()
    with use_backend("reference"):
        expected = penalty_and_gradients()
    assert expected[0] > 0
    for name, one, want in zip(
        ["penalty", *(name for name, _ in model.named_parameters())], found, expected, strict=True
    ):
        torch.testing.assert_close(one, want, atol=1e-3 * float(want.abs().max()) + 1e-7, rtol=1e-3, msg=name)


@every_class
def test_forward_mode_is_the_backward_read_the_other_way(kind: tuple[str, dict]) -> None:
    model, x = small(kind), images()
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    _, along = torch.func.jvp(lambda image: model(image).logsumexp(1), (x,), (tangent,))
    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)
    torch.testing.assert_close(along, (gradient * tangent).sum((1, 2, 3)), atol=1e-4, rtol=1e-3)


@every_class
def test_gradients_of_every_image(kind: tuple[str, dict]) -> None:
    """torch.func's gradients per sample are those of each image alone."""
    model, x = small(kind), images()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, image[None]).logsumexp(1).sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    model(x[1:]).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(found[name][1], parameter.grad, atol=1e-4 * scale + 1e-7, rtol=1e-3, msg=name)


@every_class
def test_many_gradients_at_once(kind: tuple[str, dict]) -> None:
    """A jacobian in one backward is that row by row."""
    model, x = small(kind), images()[:1]
    found = torch.autograd.functional.jacobian(model, x, vectorize=True)
    rows = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(found, rows, atol=1e-4 * float(rows.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("family", ["vim", "groupmamba", "mamba2d"])
def test_shared_weights_have_the_same_gradients_on_the_way_to_second_ones(family: str) -> None:
    model, x = small(next(kind for kind in CLASSES if kind[0].startswith(family))), images()
    blocks = model.blocks if hasattr(model, "blocks") else model.stages[-1].blocks
    blocks.append(blocks[-1])
    found, expected = (
        torch.autograd.grad(model(x).logsumexp(1).sum(), list(blocks[-1].parameters()), create_graph=further)
        for further in (True, False)
    )
    for one, want in zip(found, expected, strict=True):
        torch.testing.assert_close(one, want, atol=1e-4 * float(want.abs().max()) + 1e-7, rtol=1e-3)
