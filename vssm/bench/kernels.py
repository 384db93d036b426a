"""The selective scan at the shapes of real models: checked against the reference, then timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vssm.bench.operators import Given, check_backend, time_operator
from vssm.bench.timing import Ceilings
from vssm.scan import OrderFunction, bidirectional, cross, insert_token, raster, resolve_order
from vssm_kernels import selective_scan, sum_gate, use_backend, wavefront_scan
from vssm_kernels.testing import TOLERANCE, make_inputs


@dataclass(frozen=True)
class KernelCase:
    """Sizes of one scan in a model; `channels` are those of the scan, `height` x `width` the grid of tokens.

    A wavefront has no order: two directions stand for its ways, from above and from the left.
    """

    name: str
    batch: int
    height: int
    width: int
    channels: int
    state: int
    order: OrderFunction
    shared_input: bool = True
    gated: bool = False
    class_token: bool = False
    wavefront: bool = False

    def table(self) -> Tensor:
        order = self.order(self.height, self.width)
        return (insert_token(order, order.tokens // 2) if self.class_token else order).table


def _vim(name: str, channels: int, side: int) -> KernelCase:
    return KernelCase(name, 128, side, side, channels, 16, bidirectional, False, gated=True, class_token=True)


def _stages(name: str, channels: int, state: int) -> list[KernelCase]:
    return [KernelCase(f"{name}_stage{i + 1}", 128, 56 >> i, 56 >> i, channels << i, state, cross) for i in range(4)]


def _wavefront(name: str, batch: int, side: int, channels: int) -> KernelCase:
    return KernelCase(name, batch, side, side, channels, 16, bidirectional, wavefront=True)


KERNEL_CASES = {
    case.name: case
    for case in (
        _vim("vim_tiny", 384, 14),
        _vim("vim_small", 768, 14),
        _vim("vim_tiny_plus", 384, 27),
        *_stages("vmamba_s1", 96, 1),
        *_stages("vmamba_s2", 192, 1),
        *_stages("vmamba_v0", 192, 16),
        KernelCase("dense_1", 2, 200, 320, 192, 1, cross),
        KernelCase("dense_16", 2, 200, 320, 192, 16, cross),
        *(KernelCase(f"long_{n}", 1, 1, n, 768, 16, raster) for n in (4096, 16384, 65536)),
        _wavefront("mamba2d_stage1", 128, 56, 64),
        _wavefront("mamba2d_stage2", 128, 28, 128),
        _wavefront("mamba2d_image", 1, 256, 64),
    )
}


def benchmark_kernel(
    case: KernelCase, device: torch.device, dtype: torch.dtype, ceilings: Ceilings, backends: list[str]
) -> list[dict[str, object]]:
    """Rows of results, one per backend (and the official kernel where mamba_ssm is installed).

    Raises:
        AssertionError: a backend disagrees with the reference; nothing of it is timed then.
    """
    rows = []
    operands = [_operands(case, device, dtype, seed) for seed in range(2)]
    directions, steps = operands[0]["order"].shape
    elements = case.batch * steps * directions * case.channels * case.state
    moved = sum(t.numel() * t.element_size() for n, t in operands[0].items() if n != "order")
    moved += case.batch * operands[0]["u"].shape[1] * case.channels * dtype.itemsize  # the merged output
    floor = ceilings.floor(moved, elements)
    runs: dict[str, Callable[[Given], Tensor]] = {name: partial(_scan, case, backend=name) for name in backends}
    if official_is_installed() and device.type == "cuda" and not case.wavefront:
        runs["mamba_ssm"] = _official
    for name, run in runs.items():
        if name != "mamba_ssm":
            check(case, name, device, dtype)
        rows.append(
            {
                "case": case.name,
                "backend": name,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": case.batch,
                "tokens": steps,
                "directions": directions,
                "channels": case.channels,
                "state": case.state,
                **time_operator(run, operands, device, floor, called=True),
            }
        )
    return rows


def benchmark_orders(
    case: KernelCase,
    orders: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    backends: list[str],
) -> list[dict[str, object]]:
    """The rows of `benchmark_kernel` for a case under other orders than its own, beside raster order.

    What a step costs should not depend on which token it reads. Orders differ in their number of directions, so each
    is compared with as many raster directions: `forward_vs_raster` and `forward_backward_vs_raster` are the ratios of
    times, 1 where a walk costs nothing extra. Raster itself is timed again: its ratio is the noise. The directions of
    atrous are shorter, see `tokens`.

    Raises:
        ValueError: an unknown order.
        AssertionError: see `benchmark_kernel`.
    """
    rows: list[dict[str, object]] = []
    plain: dict[int, dict[object, dict[str, object]]] = {}  # by number of directions, then by backend
    for name in orders:
        order = resolve_order(name)
        directions = order(case.height, case.width).directions
        if directions not in plain:
            walk = replace(case, order=resolve_order(["raster"] * directions))
            timed = benchmark_kernel(walk, device, dtype, ceilings, backends)
            plain[directions] = {row["backend"]: row for row in timed}
            rows += [_compared(row, f"raster x {directions}", row) for row in timed]
        for row in benchmark_kernel(replace(case, order=order), device, dtype, ceilings, backends):
            rows.append(_compared(row, name, plain[directions][row["backend"]]))
    return rows


def _compared(row: dict[str, object], order: str, raster: dict[str, object]) -> dict[str, object]:
    ratios = {f"{what}_vs_raster": row[f"{what}_ms"] / raster[f"{what}_ms"] for what in ("forward", "forward_backward")}
    return {"case": row["case"], "order": order, **row, **ratios}


def check(case: KernelCase, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Outputs and all gradients against the reference, on a small batch and few channels of the same walk."""
    small = KernelCase(**{**case.__dict__, "batch": 1, "channels": 32, **_shorter(case)})
    given = _operands(small, device, dtype, seed=0)
    # Parameters' gradients are sums of rounded rows, so the rows' dtype bounds them too.
    check_backend(case.name, backend, partial(_scan, small), given, 2 * TOLERANCE[dtype])


def _shorter(case: KernelCase) -> dict[str, int]:
    """At most some thousand steps: the reference is a loop."""
    return {"height": min(case.height, 56), "width": min(case.width, 56 if case.height > 1 else 2048)}


def official_is_installed() -> bool:
    return importlib.util.find_spec("mamba_ssm") is not None


def _operands(case: KernelCase, device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    table = case.table()
    directions, tokens = table.shape[0], int(table.max()) + 1
    # One image's worth from the generator, the rest copies with noise: random numbers by the billion take long.
    one = make_inputs(
        1, tokens, directions, case.channels, case.state,
        shared_input=case.shared_input, dtype=dtype, device=device, seed=seed,
    )  # fmt: skip
    rows = {"u": one["u"], "delta": one["delta"], "B": one["B"], "C": one["C"]}
    if case.gated:
        rows["z"] = torch.randn(1, tokens, case.channels, device=device, dtype=dtype)
    for name, row in rows.items():
        shift = 0.1 * torch.randn(case.batch, *[1] * (row.dim() - 1), device=device, dtype=dtype)
        rows[name] = (row + shift).contiguous()
    rows["B"], rows["C"] = torch.stack([rows["B"], rows["C"]], 3).unbind(3)  # as one projection makes them
    return {**one, **rows, "order": table.to(device)}


def _scan(case: KernelCase, given: Given, backend: str) -> Tensor:
    gated = "z" in given
    with use_backend(backend):
        if case.wavefront:
            u, delta, B, C = (given[name].unflatten(1, (case.height, case.width)) for name in ("u", "delta", "B", "C"))
            return wavefront_scan(u, delta, given["A"], B, C[:, :, :, 0], given["D"][0], delta_bias=given["delta_bias"])
        y = selective_scan(
            *(given[name] for name in ("u", "delta", "A", "B", "C", "D")),
            delta_bias=given["delta_bias"],
            order=given["order"],
            merge=not gated,
        )
        return sum_gate(y, given["z"]) if gated else y


def _official(given: Given) -> Tensor:
    """The official fused scan, one call for all directions: channels first, with a copy of the input per direction."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    order = given["order"].long()
    directions = torch.arange(order.shape[0], device=order.device)[:, None]

    def walked(rows: Tensor) -> Tensor:  # (batch, tokens, directions, n) -> (batch, directions, n, steps)
        return rows.transpose(1, 2)[:, directions, order].transpose(2, 3)

    u = given["u"] if given["u"].dim() == 4 else given["u"].unsqueeze(2).expand(given["delta"].shape)
    y = selective_scan_fn(
        walked(u).flatten(1, 2),
        walked(given["delta"]).flatten(1, 2),
        given["A"].flatten(0, 1),
        walked(given["B"]),
        walked(given["C"]),
        given["D"].flatten(),
        delta_bias=given["delta_bias"].flatten(),
        delta_softplus=True,
    )
    rows = y.unflatten(1, (order.shape[0], -1)).transpose(2, 3)
    merged = torch.zeros_like(given["u"] if given["u"].dim() == 3 else given["u"][:, :, 0])
    for k in range(order.shape[0]):
        merged = merged.index_add(1, order[k], rows[:, k])
    return merged * torch.nn.functional.silu(given["z"]) if "z" in given else merged
