"""Which backend runs, and what a refusal says."""

import pytest
import torch

import vssm_kernels
from vssm_kernels import selective_scan, sum_gate, use_backend
from vssm_kernels.compiler import load_library, why_no_library
from vssm_kernels.dispatch import Backend, BackendRegistry
from vssm_kernels.selective_scan import native_cpu
from vssm_kernels.testing import assert_close, make_inputs


def test_report_names_every_backend():
    report = vssm_kernels.backend_report()
    names = [backend for op, backend, _ in report if op == "selective_scan"]
    assert names == ["native", "triton", "grouped", "reference"]
    assert all(state for _, _, state in report)
    assert ("selective_scan", "reference", "available") in report


def test_forced_backend_runs_or_says_why_not():
    u, delta, A, B, _, _, bias = make_inputs().values()
    with use_backend("native"), pytest.raises(RuntimeError, match=r"native: does not return states \(C=None\)"):
        selective_scan(u, delta, A, B, None, delta_bias=bias)
    with pytest.raises(ValueError, match=r"unknown kernel backend 'fast'; known: .*reference"), use_backend("fast"):
        pass


def test_an_op_without_the_forced_backend_chooses_freely():
    y, z = torch.randn(1, 3, 2, 4), torch.randn(1, 3, 4)
    with use_backend("grouped"):  # of the scan alone
        assert torch.isfinite(sum_gate(y, z)).all()


def test_first_backend_that_accepts_is_chosen():
    never = Backend("never", None, None, lambda args: "is not built")
    always = Backend("always", None, None, lambda args: None)
    assert BackendRegistry("op", [never, always]).choose(None) is always
    with pytest.raises(RuntimeError, match="no backend of op can run these inputs:\n  never: is not built"):
        BackendRegistry("op", [never]).choose(None)


def test_without_a_compiler_the_wheel_still_works(monkeypatch, tmp_path):
    """No compiler: the C backend says so, and plain torch runs instead."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    load_library.cache_clear(), why_no_library.cache_clear()
    try:
        assert "no C compiler found" in native_cpu.BACKEND.why_not(None)
        u, delta, A, B, C, D, bias = make_inputs(tokens=4).values()
        assert torch.isfinite(selective_scan(u, delta, A, B, C, D, delta_bias=bias)).all()
    finally:
        load_library.cache_clear(), why_no_library.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_where_their_inputs_are():
    """Not on the current GPU."""
    inputs = {name: tensor.requires_grad_() for name, tensor in make_inputs(device="cuda:1").items()}
    assert torch.cuda.current_device() == 0
    u, delta, A, B, C, D, bias = inputs.values()
    y = sum_gate(selective_scan(u, delta, A, B, C, D, delta_bias=bias), u)
    on_cpu = selective_scan(*(tensor.cpu() for tensor in (u, delta, A, B, C, D)), delta_bias=bias.cpu())
    expected = sum_gate(on_cpu, u.cpu())
    assert_close(y.detach().cpu(), expected.detach())
    assert all(gradient.device == u.device for gradient in torch.autograd.grad(y.sum(), list(inputs.values())))
