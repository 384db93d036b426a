"""What models promise beyond timm's own tests: sizes, gradients, dtypes, features, orders, compilation."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

import vssm
from vssm.models.msvmamba import half_order
from vssm.models.vim import resize_position
from vssm.scan import atrous, bidirectional, cross, diagonal, raster

# Small versions of each kind of model: (name, what makes it small).
VIM = ("vim_tiny", {"embed_dim": 32, "depth": 3, "img_size": 64})
PLUS = ("vim_tiny_plus", {"embed_dim": 32, "depth": 2, "img_size": 64})
VMAMBA = ("vmamba_tiny", {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)})
VANILLA = ("vanilla_vmamba_tiny", {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)})
MSVMAMBA = ("msvmamba_nano", {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)})
MSVMAMBA_V3 = ("msvmamba_v3_base", {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)})
EFFICIENTVMAMBA = ("efficientvmamba_tiny", {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)})
ALL = [VIM, PLUS, VMAMBA, VANILLA, MSVMAMBA, MSVMAMBA_V3, EFFICIENTVMAMBA]
KINDS = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind[0])
FAMILIES = pytest.mark.parametrize(
    "kind", [VIM, VMAMBA, MSVMAMBA, MSVMAMBA_V3, EFFICIENTVMAMBA], ids=lambda kind: kind[0]
)


def small(kind: tuple[str, dict], **overrides: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(kind[0], **{"num_classes": 10, **kind[1], **overrides})


def images(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


@KINDS
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (128, 16), (33, 47)], ids=str)
def test_any_size_and_no_parameter_without_gradient(kind: tuple[str, dict], size: tuple[int, int]) -> None:
    model = small(kind)
    logits = model(images(2, 3, *size))
    assert logits.shape == (2, 10)
    logits.logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, f"{name} has no effect"


@KINDS
def test_images_of_a_batch_do_not_mix(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(3, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-4)


@KINDS
def test_training_after_inference_mode(kind: tuple[str, dict]) -> None:
    """Tables made in inference mode must serve training too."""
    model, x = small(kind), images(1, 3, 48, 80)  # a grid that no other test uses
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_stays_finite(kind: tuple[str, dict], dtype: torch.dtype) -> None:
    model = small(kind, drop_path_rate=0.1)
    with torch.autocast("cpu", dtype):
        loss = nn.functional.cross_entropy(model(images(2, 3, 64, 64)), torch.tensor([1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_whole_model_in_another_dtype(kind: tuple[str, dict], dtype: torch.dtype) -> None:
    model, x = small(kind).eval(), images(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        found = model.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    assert (found.float() - expected).norm() <= tolerance * expected.norm()


def test_vim_keeps_its_residual_stream_in_float32() -> None:
    model = small(VIM).to(torch.bfloat16).eval()
    dtypes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    model(images(1, 3, 64, 64).to(torch.bfloat16))
    assert dtypes == [torch.float32] * 3


@FAMILIES
def test_copies_give_the_same(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@FAMILIES
def test_gradient_checkpointing_gives_the_same_gradients(kind: tuple[str, dict]) -> None:
    gradients = []
    for enable in (False, True):
        model = small(kind).train()
        model.set_grad_checkpointing(enable)
        model(images(2, 3, 64, 64)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@FAMILIES
def test_compiles_whole_forward_and_backward(kind: tuple[str, dict]) -> None:
    """One graph, traced through autograd; what inductor makes of it is tested on the GPU, where it takes seconds."""
    torch.compiler.reset()
    model, x = small(kind), images(2, 3, 64, 48)
    expected = model(x)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = compiled(x)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-3, rtol=1e-3, msg=name)
    with torch.no_grad():
        wide = images(3, 3, 64, 96)
        torch.testing.assert_close(compiled(wide), model(wide), atol=1e-4, rtol=1e-4)


@FAMILIES
def test_exports(kind: tuple[str, dict]) -> None:
    """For one image size and any batch size, and before the model ever ran: no other test has images of this size."""
    model, x = small(kind).eval(), images(5, 3, 128, 144)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [VMAMBA, MSVMAMBA, MSVMAMBA_V3, EFFICIENTVMAMBA], ids=lambda kind: kind[0])
def test_pyramid_features(kind: tuple[str, dict]) -> None:
    model = small(kind, features_only=True).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [16, 24, 32, 40]
    maps = model(images(1, 3, 96, 68))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 24, 17), (1, 24, 12, 9), (1, 32, 6, 5), (1, 40, 3, 3)]
    chosen = small(kind, features_only=True, out_indices=(0, -2)).eval()(images(1, 3, 96, 68))
    torch.testing.assert_close(chosen, [maps[0], maps[2]])


def test_plain_features() -> None:
    model = timm.create_model("vim_tiny", features_only=True, embed_dim=32, device="meta")
    assert model.out_indices == [5, 11, 17, 23]
    model = small(VIM, features_only=True, out_indices=(0, 2)).eval()
    assert model.feature_info.reduction() == [16, 16]
    assert [tuple(m.shape) for m in model(images(1, 3, 64, 96))] == [(1, 32, 4, 6)] * 2
    assert small(PLUS, features_only=True, out_indices=(1,)).feature_info.reduction() == [8]


@FAMILIES
def test_intermediates_formats_and_norm(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(1, 3, 64, 96)
    with torch.no_grad():
        features, first = model.forward_intermediates(x, indices=1, norm=True)
        last = model.forward_intermediates(x, indices=[-1], norm=True, output_fmt="NHWC", intermediates_only=True)
        torch.testing.assert_close(first[0].permute(0, 2, 3, 1), last[0])
        whole = model.patch_tokens(features) if kind is VIM else features.flatten(1, 2)
        torch.testing.assert_close(last[0].flatten(1, 2), whole)


@pytest.mark.parametrize(
    ("kind", "order", "directions"),
    [
        (VIM, cross, 4),
        (VMAMBA, raster, 1),
        (VMAMBA, bidirectional, 2),
        (EFFICIENTVMAMBA, bidirectional, 2),
        (EFFICIENTVMAMBA, atrous(3), 9),
    ],
)
def test_any_scan_order(kind: tuple[str, dict], order: object, directions: int) -> None:
    model = small(kind, scan_order=order)
    scans = [module for module in model.modules() if isinstance(module, vssm.nn.SelectiveScan)]
    assert {scan.A_log.shape[0] for scan in scans} == {directions}
    model(images(1, 3, 64, 32)).sum().backward()


@pytest.mark.parametrize("kind", [MSVMAMBA, MSVMAMBA_V3], ids=lambda kind: kind[0])
def test_any_scan_order_at_full_resolution_of_msvmamba(kind: tuple[str, dict]) -> None:
    model = small(kind, scan_order=cross)
    mixer = model.stages[0].blocks[0].mixer
    assert (mixer.scan.A_log.shape[0], mixer.half_scan.A_log.shape[0]) == (4, 1)
    model(images(1, 3, 64, 32)).sum().backward()


def test_half_order_of_msvmamba() -> None:
    rows_backwards, by_columns, columns_backwards = half_order(2, 3).table.view(3, 6).tolist()
    assert rows_backwards == [5, 4, 3, 2, 1, 0]
    assert by_columns == [0, 3, 1, 4, 2, 5]
    assert columns_backwards == [5, 2, 4, 1, 3, 0]


def test_norms_of_msvmamba_come_before_the_sum_in_the_first_version_and_after_it_in_version_3() -> None:
    """On a map of 6 x 4: the 3 x 2 tokens of half resolution, met three times each, and the whole map; or one sum."""
    for kind, normed_times in ((MSVMAMBA, 2), (MSVMAMBA_V3, 1)):
        mixer = small(kind).stages[0].blocks[0].mixer
        seen = []
        mixer.norm.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.flatten(1, -2).shape)
        )
        mixer(images(1, 6, 4, 16))
        inner = mixer.norm.weight.numel()
        assert seen == [(1, 3 * 3 * 2, inner), (1, 6 * 4, inner)][-normed_times:]


@FAMILIES
@pytest.mark.parametrize(
    ("order", "directions"),
    [("hilbert", 4), ("windows(3)", 2), (["raster", "spiral"], 3), ([bidirectional, "random(5)"], 6)],
)
def test_scan_order_by_name_and_list(kind: tuple[str, dict], order: object, directions: int) -> None:
    """A name, or a list of names and functions, trains, is copied, and pickled."""
    model = small(kind, scan_order=order)
    scans = [module for name, module in model.named_modules() if name.endswith("mixer.scan")]
    assert {scan.A_log.shape[0] for scan in scans} == {directions}
    x = images(2, 3, 64, 48)
    model(x).sum().backward()
    model.eval()
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))


@FAMILIES
def test_a_name_is_the_function_it_stands_for(kind: tuple[str, dict]) -> None:
    named, given, other = (small(kind, scan_order=order).eval() for order in ("diagonal", diagonal, "cross"))
    for module in named.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 10  # as they start, scans hardly count
    given.load_state_dict(named.state_dict())
    other.load_state_dict(named.state_dict())
    x = images(1, 3, 64, 80)
    torch.testing.assert_close(named(x), given(x))
    assert (named(x) - other(x)).abs().max() > 1e-4, "another order, another result"


@FAMILIES
def test_an_unknown_scan_order_is_named(kind: tuple[str, dict]) -> None:
    with pytest.raises(ValueError, match=r"no scan order is named 'hilbrt'; known: .*hilbert"):
        small(kind, scan_order="hilbrt")


@FAMILIES
def test_drop_path_rises_linearly(kind: tuple[str, dict]) -> None:
    model = small(kind, drop_path_rate=0.3)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]
    torch.testing.assert_close(rates, torch.linspace(0, 0.3, len(rates)).tolist())
    model.train()(images(4, 3, 32, 32)).sum().backward()


@pytest.mark.parametrize("pool", ["token", "avg", "max"])
def test_vim_pools(pool: str) -> None:
    model, x = small(VIM, global_pool=pool).eval(), images(2, 3, 48, 64)
    tokens = model.forward_features(x)
    middle = 3 * 4 // 2
    patches = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
    expected = {"token": tokens[:, middle], "avg": patches.mean(1), "max": patches.amax(1)}
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected[pool])


def test_position_embedding_is_resized_around_the_class_token() -> None:
    """A smooth slope stays one, and the class token's row travels unchanged to the new middle."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    slope = (rows / 6 + 10 * columns / 5).reshape(1, -1, 1)
    position = torch.cat([slope[:, :15], torch.full((1, 1, 1), 99.0), slope[:, 15:]], dim=1)
    assert resize_position(position, (6, 5), 6, 5) is position
    resized = resize_position(position, (6, 5), 12, 10)
    assert resized.shape == (1, 121, 1) and resized[0, 60, 0] == 99
    grid = torch.cat([resized[:, :60], resized[:, 61:]], 1).view(12, 10)
    assert grid.max() < 12
    assert (grid.diff(dim=0)[2:-2] > 0).all() and (grid.diff(dim=1)[:, 2:-2] > 0).all()


def test_vim_set_input_size_is_what_forward_does() -> None:
    model, x = small(VIM).eval(), images(1, 3, 80, 112)
    with torch.no_grad():
        expected = model(x)
        model.pos_embed.requires_grad_(False)
        model.set_input_size((80, 112))
        assert model.pos_embed.shape[1] == 5 * 7 + 1 and not model.pos_embed.requires_grad
        torch.testing.assert_close(model(x), expected)


def test_stride_8_models_have_27_by_27_patches() -> None:
    model = timm.create_model("vim_tiny_plus", device="meta")
    assert model.grid == (27, 27)
    assert model.forward_features(torch.randn(1, 3, 224, 224, device="meta")).shape == (1, 730, 192)


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        (VIM, images(1, 1, 64, 64), "expected .batch, 3 channels"),
        (VMAMBA, images(3, 64, 64), "expected .batch, 3 channels"),
        (VIM, images(1, 3, 64, 15), "at least one patch, 16 x 16"),
        (VANILLA, images(1, 3, 3, 64), "at least one patch, 4 x 4"),
        (MSVMAMBA, images(1, 3, 3, 64), "at least one patch, 4 x 4"),
        (EFFICIENTVMAMBA, images(1, 1, 64, 64), "expected .batch, 3 channels"),
    ],
)
def test_wrong_images_are_named(kind: tuple[str, dict], wrong: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small(kind)(wrong)


@FAMILIES
def test_wrong_arguments_are_named(kind: tuple[str, dict]) -> None:
    model = small(kind)
    with pytest.raises(AssertionError, match="feature index 9 is out of range"):
        model.forward_intermediates(images(1, 3, 64, 64), indices=[9])
    with pytest.raises(ValueError, match='expected "NCHW" or "NHWC"'):
        model.forward_intermediates(images(1, 3, 64, 64), output_fmt="NLC")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("vim_tinny")
    with pytest.raises(ValueError, match="global_pool is 'cls'"):
        small(VIM, global_pool="cls")
