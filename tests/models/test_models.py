"""What models promise beyond timm's own tests: sizes, gradients, dtypes, features, orders, compilation."""

from __future__ import annotations

import copy
import pickle
from itertools import filterfalse

import pytest
import timm
import torch
from families import CLASSES, KINDS, ORDERED, UNORDERED, bringing_operators, model_class, shallow
from torch import Tensor, nn

from vssm.models import FAMILIES, Plain
from vssm.nn import SelectiveScan
from vssm.scan import ScanOrder, bidirectional, diagonal
from vssm_kernels.dispatch import forget


def is_plain(kind: tuple[str, dict]) -> bool:
    return issubclass(model_class(kind[0]), Plain)


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind[0])
every_class_shallow = pytest.mark.parametrize("kind", list(map(shallow, CLASSES)), ids=lambda kind: kind[0])
every_ordered_class = pytest.mark.parametrize("kind", ORDERED, ids=lambda kind: kind[0])
# A plain model and a pyramid, for what depends on scan orders alone.
ONE_OF_EACH = [shallow(kind) for kind in (next(filter(is_plain, ORDERED)), next(filterfalse(is_plain, ORDERED)))]


def small(kind: tuple[str, dict], **overrides: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(kind[0], **{"num_classes": 10, **kind[1], **overrides})


def images(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


@every_kind
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (128, 16), (33, 47)], ids=str)
def test_any_size_and_no_parameter_without_gradient(kind: tuple[str, dict], size: tuple[int, int]) -> None:
    model = small(kind)
    logits = model(images(2, 3, *size))
    assert logits.shape == (2, 10)
    logits.logsumexp(1).sum().backward()
    idle = model.parameters_without_effect()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad.abs().sum() == 0) == (name in idle), f"{name} has an effect, or none"


@every_kind
def test_images_of_a_batch_do_not_mix(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(3, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-4)


@every_class_shallow
def test_a_pooling_that_a_model_lacks_is_named_and_changes_nothing(kind: tuple[str, dict]) -> None:
    model = small(kind)
    for pool in ("nonsense", "catavgmax" if is_plain(kind) else "token"):
        with pytest.raises(ValueError, match=f"global_pool is '{pool}'; expected one of"):
            small(kind, global_pool=pool)
        with pytest.raises(ValueError, match=f"global_pool is '{pool}'; expected one of"):
            model.reset_classifier(5, pool)
    assert model.num_classes == model(images(2, 3, 32, 32)).shape[1] == 10


@every_class_shallow
def test_a_batch_may_be_empty(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(0, 3, 64, 48).requires_grad_()
    logits = model(x)
    assert logits.shape == (0, 10)
    logits.sum().backward()
    assert x.grad.shape == x.shape
    with torch.no_grad():
        assert all(len(each) == 0 for each in model.forward_intermediates(x, intermediates_only=True))


@every_kind
def test_training_after_inference_mode(kind: tuple[str, dict]) -> None:
    """Tables made in inference mode serve training: gradients are those of a model that never ran in it."""
    x = images(1, 3, 48, 80)
    trained, inferred = (small(kind) for _ in range(2))
    trained(x).sum().backward()
    with torch.inference_mode():
        inferred(x)
    inferred(x).sum().backward()
    for (name, expected), found in zip(trained.named_parameters(), inferred.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_stays_finite(kind: tuple[str, dict], dtype: torch.dtype) -> None:
    model = small(kind, drop_path_rate=0.1)
    with torch.autocast("cpu", dtype):
        loss = nn.functional.cross_entropy(model(images(2, 3, 64, 64)), torch.tensor([1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_whole_model_in_another_dtype(kind: tuple[str, dict], dtype: torch.dtype) -> None:
    model, x = small(kind).eval(), images(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        found = model.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    assert (found.float() - expected).norm() <= tolerance * expected.norm()


@every_class
def test_copies_give_the_same(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@every_class
def test_gradient_checkpointing_gives_the_same_gradients_and_running_statistics(kind: tuple[str, dict]) -> None:
    gradients, buffers = [], []
    for enable in (False, True):
        model = small(kind).train()
        model.set_grad_checkpointing(enable)
        forget()  # how ops run arguments of their kind, as in a new process
        model(images(2, 3, 64, 64)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        buffers.append(dict(model.named_buffers()))
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(buffers[0], buffers[1])


@every_class_shallow
def test_compiles_whole_forward_and_backward(kind: tuple[str, dict]) -> None:
    """One graph of every class, traced through autograd where operators are new, which takes as long again; what
    inductor makes of it is tested on the GPU, where it takes seconds."""
    torch.compiler.reset()
    model, x = small(kind), images(2, 3, 64, 48)
    expected = model(x)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    backend = "aot_eager" if kind in bringing_operators() else "eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    found = compiled(x)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-3, rtol=1e-3, msg=name)
    if kind in ONE_OF_EACH:  # a second graph takes as long as the first
        with torch.no_grad():
            wide = images(3, 3, 64, 96)
            torch.testing.assert_close(compiled(wide), model(wide), atol=1e-4, rtol=1e-4)


@every_class_shallow
def test_exports(kind: tuple[str, dict]) -> None:
    """For one image size and any batch size, and before the model ever ran: no other test has images of this size."""
    model, x = small(kind).eval(), images(5, 3, 128, 144)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "dynamic", "strict"),
    [
        *((kind, {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}, False) for kind in map(shallow, ORDERED)),
        *((kind, {2: torch.export.Dim.AUTO}, True) for kind in ONE_OF_EACH),
        *((kind, {3: 32 * torch.export.Dim("columns", min=1, max=8)}, False) for kind in ONE_OF_EACH),
    ],
)
def test_export_for_several_sizes_is_refused(kind: tuple[str, dict], dynamic: dict, strict: bool) -> None:
    """A scan order is a constant: a program that announced a range of sizes would be wrong for all but one."""
    model, x = small(kind).eval(), images(2, 3, 64, 96)
    with pytest.raises(Exception, match="exported for one height and width: declare only the batch dynamic"):
        torch.export.export(model, (x,), dynamic_shapes=(dynamic,), strict=strict)


@pytest.mark.parametrize("kind", list(map(shallow, UNORDERED)), ids=lambda kind: kind[0])
def test_without_a_scan_order_exports_for_every_size(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(2, 3, 64, 96)
    program = torch.export.export(model, (x,), dynamic_shapes=(dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),))
    with torch.no_grad():
        for size in ((2, 3, 64, 96), (1, 3, 71, 45), (3, 3, 160, 38)):  # no last map of one column: torch asks for two
            torch.testing.assert_close(program.module()(images(*size)), model(images(*size)), atol=1e-5, rtol=1e-4)


def declared_strides(name: str) -> tuple[int, ...]:
    family = next(family for family in FAMILIES.values() if name in family.models)
    return family.models[name].strides or family.strides


@every_kind
def test_features_are_those_declared(kind: tuple[str, dict]) -> None:
    """Maps have the declared strides and the channels that feature_info says, on an image that no stride divides."""
    height, width = 101, 69
    model = small(kind, features_only=True).eval()
    strides = declared_strides(kind[0])
    assert set(model.feature_info.reduction()) == set(strides)
    assert len(strides) == 1 or model.feature_info.reduction() == list(strides)
    with torch.no_grad():
        maps = model(images(1, 3, height, width))
        for x, channels, stride in zip(
            maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
        ):
            assert x.shape[:2] == (1, channels)
            # Stems without padding round the size down, the others up.
            assert height // stride - 1 <= x.shape[2] <= -(-height // stride), (x.shape, stride)
            assert width // stride - 1 <= x.shape[3] <= -(-width // stride), (x.shape, stride)
        some = small(kind, features_only=True, out_indices=(0, -1)).eval()
        torch.testing.assert_close(some(images(1, 3, height, width)), [maps[0], maps[-1]])


@every_class
def test_intermediates_formats_and_norm(kind: tuple[str, dict]) -> None:
    model, x = small(kind).eval(), images(1, 3, 64, 96)
    with torch.no_grad():
        features, first = model.forward_intermediates(x, indices=1, norm=True)
        last = model.forward_intermediates(x, indices=[-1], norm=True, output_fmt="NHWC", intermediates_only=True)
        torch.testing.assert_close(first[0].permute(0, 2, 3, 1), last[0])
        if model.feature_info[-1]["num_chs"] == model.num_features:  # or a neck follows the maps
            whole = model.patch_tokens(features) if isinstance(model, Plain) else features.flatten(1, 2)
            torch.testing.assert_close(last[0].flatten(1, 2), whole)


@every_class_shallow
def test_maps_come_in_the_order_asked_for(kind: tuple[str, dict]) -> None:
    """As their channels and strides are listed."""
    x = images(1, 3, 64, 64)
    maps = small(kind, features_only=True, out_indices=None).eval()(x)
    for indices in ((-1, 0), (0, 0)):
        chosen = small(kind, features_only=True, out_indices=indices).eval()
        found = chosen(x)
        assert [each.shape[1] for each in found] == chosen.feature_info.channels()
        torch.testing.assert_close(found, [maps[i] for i in indices])
    model = small(kind).eval()
    model.prune_intermediate_layers([-1, 0, 0])
    assert len(model.forward_intermediates(x, indices=[-1, 0, 0], intermediates_only=True)) == 3


def rows_and_columns(height: int, width: int) -> ScanOrder:
    """Rows, then columns, then both backwards, written out."""
    rows = list(range(height * width))
    columns = [row * width + column for column in range(width) for row in range(height)]
    return ScanOrder(torch.tensor([rows, columns, rows[::-1], columns[::-1]]), height * width)


def rows_both_ways(height: int, width: int) -> ScanOrder:
    """Rows, and backwards, written out."""
    rows = list(range(height * width))
    return ScanOrder(torch.tensor([rows, rows[::-1]]), height * width)


def sharpen(model: nn.Module) -> nn.Module:
    """Larger weights, so that scans count: as they start, another order hardly changes the logits."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 10
    return model.eval()


@pytest.mark.parametrize("kind", list(map(shallow, ORDERED)), ids=lambda kind: kind[0])
@pytest.mark.parametrize(
    ("order", "written_out"),
    [
        ("cross", rows_and_columns),
        (bidirectional, rows_both_ways),
        (["raster", "local(5)"], None),
        ("windows(3)", None),
    ],
    ids=["cross", "bidirectional", "list", "windows"],
)
def test_any_scan_order(kind: tuple[str, dict], order: object, written_out: object) -> None:
    """A name, a function or a list trains; is copied and pickled; is what a table written out gives, and no other."""
    model, x = sharpen(small(kind, scan_order=order)), images(2, 3, 64, 48)
    model(x).sum().backward()
    scans = {name: module for name, module in model.named_modules() if isinstance(module, SelectiveScan)}
    idle = model.parameters_without_effect()
    assert all(scan.A_log.grad.abs().sum() > 0 for name, scan in scans.items() if f"{name}.A_log" not in idle)
    with torch.no_grad():
        expected = model(x)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(copied(x), expected, rtol=0, atol=0)
        if written_out is not None:
            same = small(kind, scan_order=written_out).eval()
            same.load_state_dict(model.state_dict())
            torch.testing.assert_close(same(x), expected, rtol=0, atol=0)


@every_ordered_class
def test_another_scan_order_gives_another_result(kind: tuple[str, dict]) -> None:
    named, given, other = (small(kind, scan_order=order) for order in ("diagonal", diagonal, "cross"))
    given.load_state_dict(sharpen(named).state_dict())
    other.load_state_dict(named.state_dict())
    x = images(1, 3, 64, 80)
    torch.testing.assert_close(given.eval()(x), named(x), rtol=0, atol=0)
    assert (named(x) - other.eval()(x)).abs().max() > 1e-4


@every_ordered_class
def test_an_unknown_scan_order_is_named(kind: tuple[str, dict]) -> None:
    with pytest.raises(ValueError, match=r"no scan order is named 'hilbrt'; known: .*hilbert"):
        small(kind, scan_order="hilbrt")


@every_class
def test_drop_path_rises_linearly(kind: tuple[str, dict]) -> None:
    model = small(kind, drop_path_rate=0.3)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]
    rates = list(dict.fromkeys(rates))  # branches side by side have the same
    torch.testing.assert_close(rates, torch.linspace(0, 0.3, len(rates)).tolist())
    model.train()(images(4, 3, 32, 32)).sum().backward()


@every_kind
@pytest.mark.parametrize(
    ("size", "told"),
    [((1, 1, 64, 64), "expected .batch, 3 channels"), ((3, 64, 64), "expected .batch, 3 channels")],
    ids=["one channel", "no batch"],
)
def test_wrong_images_are_named(kind: tuple[str, dict], size: tuple[int, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small(kind)(images(*size))


@every_class_shallow
def test_bytes_are_no_images(kind: tuple[str, dict]) -> None:
    with pytest.raises(ValueError, match=r"the input is torch\.uint8; expected floating-point numbers"):
        small(kind)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@every_class
def test_wrong_arguments_are_named(kind: tuple[str, dict]) -> None:
    model = small(kind)
    with pytest.raises(ValueError, match=r"out_indices is \[9\]; expected a list of numbers from"):
        model.forward_intermediates(images(1, 3, 64, 64), indices=[9])
    with pytest.raises(ValueError, match='expected "NCHW" or "NHWC"'):
        model.forward_intermediates(images(1, 3, 64, 64), output_fmt="NLC")
