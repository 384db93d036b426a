"""Exported files run without vssm and give what the model gives, for every class of models."""

import copy
import importlib.util
import math
import subprocess
import sys

import pytest
import timm
import torch
from families import KINDS, shallow
from torch.utils.flop_counter import FlopCounterMode

from vssm.cli import export as tool
from vssm.errors import ConfigError, UserError
from vssm.inference.export import FORMATS, Format, export
from vssm.models import FAMILIES
from vssm.ops import ScanTable, causal_conv1d, selective_scan, standard_operations
from vssm_kernels import standard
from vssm_kernels.selective_scan import OP, looped
from vssm_kernels.selective_scan.arguments import ScanArguments

FIRST = [next(iter(family.small.items())) for family in FAMILIES.values()]
# Where the `export` extra is not installed, ONNX is not tested.
onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason='needs pip install "vssm[export]"',
)
TABLES = {
    "raster": None,
    "permutation": torch.tensor([[3, 1, 0, 2, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]]),
    "empty steps": torch.tensor([[-1, 3, 1, 0, 2, 4, -1, 5, 6], [6, 5, 4, -1, 3, 2, 1, 0, -1]]),
    "repeats and gaps": torch.tensor([[3, 1, 3, 1, 0], [6, -1, 6, 2, 0]]),
}


@pytest.fixture
def no_operators():
    """Run a trace that must hold none of our operators."""

    def traced(function, *inputs):
        with standard_operations():
            graph = torch.jit.trace(function, inputs, check_trace=False)
        assert "vssm::" not in str(graph.inlined_graph)
        return graph(*inputs)

    return traced


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize(("state", "segment", "states"), [(1, None, False), (3, 2, False), (2, 3, True)])
def test_scan_and_convolution_in_standard_operations(no_operators, table, state, segment, states):
    order = None if table is None else ScanTable.of(table, 7)
    u, delta, A, weight = torch.randn(2, 7, 4), torch.randn(2, 7, 2, 3), -torch.rand(2, 4, state), torch.randn(2, 4, 3)
    B, C = torch.randn(2, 7, 2, state), None if states else torch.randn(2, 7, 2, state)

    def scan(u, delta, B):
        return selective_scan(u, delta, A, B, C, delta_weight=weight, order=order, segment=segment)

    torch.testing.assert_close(no_operators(scan, u, delta, B), scan(u, delta, B), rtol=1e-5, atol=1e-6)
    if order is not None and not states:

        def conv(x):
            return causal_conv1d(x, weight, None, order, silu=True)

        torch.testing.assert_close(no_operators(conv, u), conv(u), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("block", "low_rank"), [(2**15, True), (1, False)])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize(("state", "segment", "states"), [(1, None, False), (1, 3, True), (3, 2, False), (2, 3, True)])
def test_loops_for_onnx(monkeypatch, table, state, segment, states, low_rank, block):
    """Run as loops of Python. With blocks of one step they are made in a loop too."""

    def loop(step, carried, rows):
        outputs = []
        for row in zip(*rows, strict=True):
            carried, output = step(carried, list(row))
            outputs.append(output)
        return [torch.stack(each) for each in zip(*outputs, strict=True)]

    monkeypatch.setattr(looped, "_loop", loop)
    monkeypatch.setattr(looped, "_BLOCK", block)
    monkeypatch.setattr(looped, "_WHOLE", 0 if block == 1 else looped._WHOLE)
    order = None if table is None else ScanTable.of(table, 7)
    u, A, D, bias = torch.randn(2, 7, 4), -torch.rand(2, 4, state), torch.randn(2, 4), torch.randn(2, 4)
    weight = torch.randn(2, 4, 3) if low_rank else None
    delta = torch.randn(2, 7, 2, 3 if low_rank else 4)
    B, C, D = torch.randn(2, 7, 2, state), *((None, None) if states else (torch.randn(2, 7, 2, state), D))
    args = ScanArguments(u, delta, A, B, C, D, bias, weight, None, order, segment or 0)
    for each in (args, args._replace(u=torch.randn(2, 7, 2, 4)), args._replace(delta_bias=None)):
        torch.testing.assert_close(looped.scan(each), OP(each), rtol=1e-5, atol=1e-6)


def test_softplus_for_onnx_is_rounded_once():
    x = torch.linspace(-80, 120, 20001)
    exact = torch.nn.functional.softplus(x.double(), threshold=1000).float()
    torch.testing.assert_close(standard.softplus_for_onnx(x), exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize(("name", "arguments"), [*map(shallow, KINDS)])
def test_traces_are_the_same_with_and_without_gradients(name, arguments):
    """jit.trace checks it, as it does for TensorBoard's add_graph; the trace runs and has gradients."""
    model, images = timm.create_model(name, **arguments).eval(), torch.randn(1, 3, 32, 32)
    traced = torch.jit.trace(model, images)
    torch.testing.assert_close(traced(images), model(images), rtol=1e-5, atol=1e-5)
    traced(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_files_run_where_vssm_is_not_imported(tmp_path):
    model = timm.create_model("vim_tiny", depth=1, embed_dim=16, num_classes=4)
    script = export(model, tmp_path / "model.pt", "torchscript", (32, 48)).path
    program = export(model, tmp_path / "model.pt2", "exported", (32, 48), dynamic_batch=True).path
    code = (
        "import sys, torch\n"
        "one = torch.jit.load(sys.argv[1])(torch.ones(1, 3, 32, 48))\n"
        "many = torch.export.load(sys.argv[2]).module()(torch.ones(5, 3, 32, 48))\n"
        "torch.testing.assert_close(many[:1], one, rtol=1e-4, atol=1e-4)\n"
        "assert not any(name.startswith('vssm') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, script, program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["torchscript", "exported"])
def test_files_of_maps_take_any_batch_and_one_size(tmp_path, form):
    sizes = {"dims": (16, 24), "depths": (1, 1)}
    model = timm.create_model("vmamba_tiny", features_only=True, **sizes)
    made = export(model, tmp_path / "maps.pt2", form, (32, 32), dynamic_batch=True)
    run = FORMATS[form].load(made.path)
    for count in (1, 3):
        images = torch.randn(count, 3, 32, 32)
        for found, expected in zip(run(images), model(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for wrong in ((1, 3, 48, 48), (1, 3, 16, 64), (1, 1, 32, 32)):
        with pytest.raises((RuntimeError, AssertionError)):
            run(torch.randn(wrong))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, None])
def test_every_map_of_a_file_is_compared(tmp_path, monkeypatch, wrong):
    """A NaN in the second map is no smaller than the first map's difference; None is a map of another shape."""
    model = timm.create_model("vmamba_tiny", dims=(8, 16), depths=(1, 1), features_only=True)

    def load(path):
        return lambda images: [
            m if i == 0 else m[:, :1] if wrong is None else m * wrong for i, m in enumerate(model(images))
        ]

    monkeypatch.setitem(FORMATS, "broken", Format(".txt", (), lambda *given: given[2].write_text(""), load))
    with pytest.raises(UserError, match="gives other outputs than the model"):
        export(model, tmp_path / "maps.txt", "broken", (32, 32))
    assert not list(tmp_path.iterdir())


def test_a_trace_refuses_another_number_of_tokens():
    with standard_operations(), torch.no_grad():
        traced = torch.jit.trace(timm.create_model("vim_tiny", depth=1, embed_dim=16).eval(), torch.ones(1, 3, 32, 32))
    with pytest.raises(RuntimeError):
        traced(torch.ones(1, 3, 48, 48))


@pytest.mark.parametrize(
    ("name", "arguments"), [("vim_tiny", {"depth": 1}), ("vmamba_tiny", {"depths": (1,), "dims": (16,)})]
)
def test_a_trace_takes_any_batch_and_refuses_another_grid_of_as_many_tokens(name, arguments):
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.ones(1, 3, 32, 64))
        images = torch.randn(2, 3, 32, 64)
        torch.testing.assert_close(traced(images), model(images))
        with pytest.raises(RuntimeError, match="don't multiply up to the size"):
            traced(torch.ones(1, 3, 64, 32))


def test_what_cannot_be_exported_is_said(tmp_path):
    model = timm.create_model("vim_tiny", depth=1, embed_dim=16)

    def refused(sentence, *arguments):
        with pytest.raises(ConfigError, match=sentence):
            export(*arguments)

    refused("one of onnx, torchscript", model, tmp_path / "a", "ONNX")
    refused("there is no folder", model, tmp_path / "none" / "a", "torchscript")
    for size in (32, (0, 32)):
        refused("height and the width", model, tmp_path / "a", "torchscript", size)
    refused("is float16 on cpu", copy.deepcopy(model).half(), tmp_path / "a", "torchscript")
    refused("on meta", timm.create_model("vim_tiny", depth=1, device="meta"), tmp_path / "a", "torchscript")
    refused("no convolution", torch.nn.Linear(3, 3), tmp_path / "a", "torchscript")
    with pytest.raises(TypeError, match="cannot read Vim; use"):
        torch.jit.script(model)


@onnx
@pytest.mark.parametrize(("name", "arguments"), [shallow(kind, 1) for kind in FIRST])
def test_onnx_without_an_option_of_ours(name, arguments, tmp_path):
    """A family's other classes and further blocks have the same operations. Optimised once alone: that takes half of
    the time, and nothing of ours has part in it."""
    import onnxruntime

    model, images = timm.create_model(name, **arguments).eval(), torch.randn(1, 3, 32, 32)
    path, optimize = tmp_path / "model.onnx", name == FIRST[0][0]
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False, optimize=optimize)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = model(images).detach()
    assert (torch.from_numpy(found) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_tool_writes_whole_files_only_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vssm.cli.exporting.create_model", lambda name: timm.create_model(name, depth=1))
    out = tmp_path / "vim.pt"
    arguments = ["vim_tiny", "--untrained", "--format", "torchscript", "--size", "32", "32", "--out", str(out)]
    assert tool(arguments) == 0
    assert "differs from the model by" in capsys.readouterr().out
    assert tool(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err

    monkeypatch.setattr("vssm.inference.export.TOLERANCE", -1.0)
    assert tool([*arguments, "--overwrite"]) == 1
    assert "gives other outputs than the model" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["vim.pt"]

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else found(name))
    assert tool(["vim_tiny", "--untrained", "--out", str(tmp_path / "vim.onnx")]) == 1
    assert 'pip install "vssm[export]"' in capsys.readouterr().err


def test_tool_takes_the_size_that_the_model_is_evaluated_with(tmp_path, capsys, monkeypatch):
    overlay = {"input_size": (3, 64, 64)}

    def made(name):
        return timm.create_model(name, depth=1, pretrained_cfg_overlay=overlay)

    monkeypatch.setattr("vssm.cli.exporting.create_model", made)
    out = tmp_path / "vim.pt"
    assert tool(["vim_tiny", "--untrained", "--format", "torchscript", "--out", str(out)]) == 0
    assert "for images of 64 x 64 pixels" in capsys.readouterr().out
    assert torch.jit.load(out)(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_counter_of_torch_counts_scans():
    model, images = timm.create_model("vim_tiny", device="meta"), torch.empty(1, 3, 224, 224, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images)
    # What tables say, which is half of what torch counts.
    assert counter.get_total_flops() / 2e9 == pytest.approx(1.82, abs=0.01)
    forward = counter.get_flop_counts()["Global"][torch.ops.vssm.selective_scan]
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    assert counter.get_flop_counts()["Global"][torch.ops.vssm.selective_scan_backward] == 2 * forward
