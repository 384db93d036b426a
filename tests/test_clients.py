"""The quick ones of client_checks.py, for a plain model and a pyramid, and what they rest on for every class."""

import pytest
import timm
import torch
from client_checks import CLIENTS
from families import CLASSES, model_class
from forked import run_code
from torch.utils.flop_counter import FlopCounterMode

from vssm.bench import fvcore_handles, ptflops_hooks
from vssm.models import HRVMamba, Plain

TWO = [next(kind for kind in CLASSES if issubclass(model_class(kind[0]), Plain) == plain) for plain in (True, False)]


@pytest.mark.parametrize("kind", TWO, ids=lambda kind: kind[0])
@pytest.mark.parametrize(
    "client", [each for each in CLIENTS if not each.slow], ids=lambda each: f"{each.name}, {each.what}"
)
def test_client(client, kind):
    if not client.installed:
        pytest.skip(f"needs {client.name}")
    client.check(kind)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind[0])
def test_hooks_find_tensors_of_the_documented_layout(kind):
    model, seen = timm.create_model(kind[0], **kind[1]).eval(), []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
    channels = 1 if isinstance(model, HRVMamba) else -1  # whose branches are channels-first maps
    for info, found in zip(model.feature_info, seen, strict=True):
        assert found.shape[channels] == info["num_chs"]
        assert found.dim() == (4 if model.output_fmt == "NHWC" else 3)


@pytest.mark.parametrize("kind", TWO, ids=lambda kind: kind[0])
def test_other_counters_are_told_what_torch_counts(kind):
    model, images = timm.create_model(kind[0], **kind[1]).eval(), torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    counted = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    ours = {name: count // 2 for name, count in counted.items() if name.startswith("vssm.")}
    handles, found = fvcore_handles(), {}
    with torch.no_grad():
        graph, _ = torch.jit._get_trace_graph(model, images)  # as fvcore does: parameters are inputs, with their shapes
    for node in graph.nodes():
        if handle := handles.get(node.kind()):
            name = node.kind().replace("::", ".")
            found[name] = found.get(name, 0) + handle(list(node.inputs()), list(node.outputs()))
    assert found == ours and ours
    assert {str(operator) for operator in ptflops_hooks()} >= set(ours)


# `python -m vssm`, twice, in a process that has not imported vssm.
RUN_SCRIPTS = """
import contextlib, runpy, sys
for script in ("validate.py", "nothing.py"):
    sys.argv = ["vssm", script, "--model", "vim_tiny", "-b", "3"]
    try:
        with contextlib.redirect_stderr(sys.stdout):
            runpy.run_module("vssm", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("exit code", end.code)
"""


def test_scripts_of_others_run_with_our_models(tmp_path):
    script = "import sys, timm, beside\nprint(sys.argv[1:], timm.is_model('vim_tiny'), __name__)\n"
    (tmp_path / "validate.py").write_text(script)
    (tmp_path / "beside.py").write_text("")
    printed = run_code(RUN_SCRIPTS, tmp_path)
    assert printed.startswith("['--model', 'vim_tiny', '-b', '3'] True __main__\n"), printed
    assert "there is no file nothing.py" in printed and printed.endswith("exit code 2\n"), printed
