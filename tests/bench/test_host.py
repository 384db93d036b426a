"""What a block costs the host in eager mode does not creep back: calls are counted, not timed."""

import pytest
import torch

from vssm.bench import benchmark_host

# Calls of Python and C together, and launches of kernels of ours: a tenth above what was counted.
LIMITS = {
    ("vim_tiny", False): (555, 5),
    ("vim_tiny", True): (1260, 16),
    ("vmamba_tiny", False): (780, 7),
    ("vmamba_tiny", True): (1545, 23),
    ("groupmamba_tiny", False): (1130, 13),
    ("groupmamba_tiny", True): (2560, 36),
}


@pytest.mark.parametrize(("name", "training"), LIMITS)
def test_calls_and_launches_of_a_block(name, training):
    pytest.importorskip("triton", reason="Triton is optional")
    calls, launches = LIMITS[name, training]
    row = benchmark_host(name, training, runs=1)
    assert row["launches"] <= launches, row
    assert 0 < row["python_calls"] + row["c_calls"] <= calls, row


def test_nothing_stays_replaced():
    pytest.importorskip("triton", reason="Triton is optional")
    benchmark_host("vim_tiny", False, runs=1)
    assert not torch.ones(1).is_cuda


def test_a_model_that_is_not_ours():
    with pytest.raises(ValueError, match="vim_tiny"):
        benchmark_host("resnet18", False)
