"""Benchmarks: check correctness, then measure median times, peak memory and the machine's limits."""

from vssm.bench.counters import fvcore_handles, ptflops_hooks
from vssm.bench.duality import DUALITY_CASES, DualityCase, benchmark_duality
from vssm.bench.flops import Flops, count_flops
from vssm.bench.host import benchmark_host
from vssm.bench.kernels import KERNEL_CASES, KernelCase, benchmark_kernel, benchmark_orders
from vssm.bench.maps import MAP_CASES, MapCase, benchmark_map
from vssm.bench.models import Execution, benchmark_model, model_flops
from vssm.bench.report import environment, print_table, write_csv, write_plot, write_scatter
from vssm.bench.timing import Ceilings, median_time
from vssm.bench.trees import TREE_CASES, TreeCase, benchmark_tree

__all__ = [
    "DUALITY_CASES",
    "KERNEL_CASES",
    "MAP_CASES",
    "TREE_CASES",
    "Ceilings",
    "DualityCase",
    "Execution",
    "Flops",
    "KernelCase",
    "MapCase",
    "TreeCase",
    "benchmark_duality",
    "benchmark_host",
    "benchmark_kernel",
    "benchmark_map",
    "benchmark_model",
    "benchmark_orders",
    "benchmark_tree",
    "count_flops",
    "environment",
    "fvcore_handles",
    "median_time",
    "model_flops",
    "print_table",
    "ptflops_hooks",
    "write_csv",
    "write_plot",
    "write_scatter",
]
