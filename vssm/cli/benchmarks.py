"""Measure kernels, models, detectors, segmentors and exported files: python tools/benchmark.py WHAT [--help].

Every kernel is compared with the reference before it is timed. Times are medians, with rotating buffers, after a
warm-up; peers run in the same call, so that ratios do not depend on the state of the machine.

    python tools/benchmark.py kernels --cases vim_tiny vmamba_s1_stage1 --csv kernels.csv
    python tools/benchmark.py kernels --cases vmamba_s1_stage1 --orders all --csv orders.csv
    python tools/benchmark.py models vim_tiny deit_tiny_patch16_224 --sizes 224 384 512 --train --plot growth.png
    python tools/benchmark.py models --train --graph --latency --csv docs/studies/zoo.csv
    python tools/benchmark.py heads configs/detection/vmamba/mask_rcnn_vmamba_tiny_s1l8_1x_coco.py
    python tools/benchmark.py host vim_tiny vmamba_tiny
    python tools/benchmark.py export vim_tiny vmamba_tiny --formats onnx torchscript

Operations are counted for one image by the convention in vssm/bench/flops.py. Published figures of models at 224
pixels, and of detectors and segmentors, stand beside them (from model_cards/results.yaml).
"""

import argparse
import inspect
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from vssm.bench import (
    DUALITY_CASES,
    KERNEL_CASES,
    MAP_CASES,
    TREE_CASES,
    Ceilings,
    Execution,
    benchmark_duality,
    benchmark_host,
    benchmark_kernel,
    benchmark_map,
    benchmark_model,
    benchmark_orders,
    benchmark_tree,
    environment,
    model_flops,
    print_table,
    write_csv,
    write_plot,
)
from vssm.cli.arguments import CHECKOUT, add_overwrite, number, pixels, positive
from vssm.errors import ConfigError
from vssm.files import check_outputs, make_directory
from vssm.inference.create import check_known, create_model
from vssm.inference.export import FORMATS, export
from vssm.inference.predictor import resolve_device
from vssm.models import FAMILIES
from vssm.scan import order_named, order_names
from vssm_kernels import use_backend

RESULTS = CHECKOUT / "model_cards/results.yaml"
RECIPES = CHECKOUT / "configs/recipes.yaml"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def benchmark_parser() -> argparse.ArgumentParser:
    """The options of tools/benchmark.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    kernels = commands.add_parser("kernels", help="scans at the shapes of real models, duality beside attention")
    cases = [*KERNEL_CASES, *DUALITY_CASES, *TREE_CASES, *MAP_CASES]
    kernels.add_argument("--cases", nargs="+", choices=cases, default=list(KERNEL_CASES), metavar="CASE",
                         help=f"of: {', '.join(cases)} (default: the scans, along orders and wavefronts)")  # fmt: skip
    kernels.add_argument(
        "--backends",
        nargs="+",
        type=known_backend,
        metavar="NAME",
        help="default: triton on a GPU, native, grouped or chunked, those that a case has, on a CPU",
    )
    kernels.add_argument("--orders", nargs="+", type=known_order, metavar="ORDER",
                         help='these instead of each case\'s own, beside raster order: "all", or names')  # fmt: skip
    kernels.add_argument("--batch", type=positive, help="instead of each case's own")

    models = commands.add_parser("models", help="any timm models end to end")
    models.add_argument("names", nargs="*", metavar="MODEL",
                        help="vim_tiny, deit_tiny_patch16_224, ... (default: those of docs/zoo.md)")  # fmt: skip
    models.add_argument("--sizes", nargs="+", type=pixels, default=[224], help="pixels (default: 224)")
    models.add_argument("--batch", type=positive, default=128, help="default: %(default)s")
    models.add_argument("--train", action="store_true", help="also forward, backward and an AdamW step")
    models.add_argument("--compile", action="store_true", help="also through torch.compile")
    models.add_argument("--graph", action="store_true", help="also as CUDA graphs; with --compile, of both")
    models.add_argument("--latency", action="store_true", help="also inference of a single image")
    models.add_argument("--seconds", type=number(0, 3600), default=2.0,
                        help="to measure each run (default: %(default)s); 0 fills Triton's cache on disk")  # fmt: skip
    models.add_argument("--rounds", type=positive, default=1,
                        help="each row is the quickest of so many, for a busy host (default: %(default)s)")  # fmt: skip
    models.add_argument("--plot", type=Path, help="PNG of the time per image over the size")

    heads = commands.add_parser("heads", help="detectors and segmentors, and their backbones alone")
    heads.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="configs/detection/... or segmentation/")
    heads.add_argument("--size", nargs=2, type=pixels, metavar=("HEIGHT", "WIDTH"),
                       help="pixels (default: 800 1280 for detection, 512 2048 for segmentation)")  # fmt: skip
    heads.add_argument("--batch", type=positive, default=1, help="default: %(default)s")

    host = commands.add_parser("host", help="what a block costs the host in eager mode, without a GPU")
    host.add_argument("names", nargs="+", metavar="MODEL", help="vim_tiny, vmamba_tiny, ...")

    export = commands.add_parser("export", help="files for other programs, beside the model, on a CPU in float32")
    export.add_argument("names", nargs="+", metavar="MODEL", help="with initial weights")
    export.add_argument("--formats", nargs="+", choices=FORMATS, default=["onnx"], help="default: onnx")

    export.add_argument("--blocks", type=positive, help="at most so many a stage: writing takes seconds a block")

    for command in (kernels, models, heads, host, export):
        if command is not export:
            command.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
            command.add_argument("--device", type=known_device, help="default: a GPU if there is one")
        command.add_argument("--csv", type=Path, help="write the results with device, versions, commit and command")
        add_overwrite(command)
    return parser


def known_device(name: str) -> torch.device:
    try:
        return resolve_device(name)
    except ConfigError as error:  # a sentence for the user
        raise argparse.ArgumentTypeError(str(error)) from error


def known_backend(name: str) -> str:
    try:
        with use_backend(name):
            return name
    except ValueError as error:  # a sentence for the user
        raise argparse.ArgumentTypeError(str(error)) from error


def known_order(name: str) -> str:
    if name != "all":
        try:
            order_named(name)
        except ValueError as error:  # a sentence for the user
            raise argparse.ArgumentTypeError(str(error)) from error
    return name


def run_benchmark(arguments: argparse.Namespace) -> None:
    """Measure as the arguments of `benchmark_parser` say."""
    if arguments.command == "export":
        device = torch.device("cpu")
    else:
        device = arguments.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if getattr(arguments, "graph", False) and device.type != "cuda":
        raise ConfigError(f"--graph captures CUDA graphs, which needs a GPU; the device is {device}")
    inputs = getattr(arguments, "configs", ())
    for option in ("csv", "plot"):
        if path := getattr(arguments, option, None):
            check_outputs([path], f"--{option}", arguments.overwrite, inputs)
            make_directory(path.parent, f"--{option}")
    facts = environment(device)
    print("  ".join(f"{name} {value}" for name, value in facts.items() if name != "command"))
    rows = []
    runs = {"kernels": run_kernels, "models": run_models, "heads": run_heads, "host": run_host, "export": run_exports}
    try:
        for row in runs[arguments.command](arguments, device):
            rows.append(row)
            if arguments.command == "models":
                rows = quickest(rows)
            if arguments.csv:  # after every row, so that an interrupted run leaves its results
                write_csv(arguments.csv, rows, facts)
    finally:
        print_table(rows)
    if arguments.command == "models" and arguments.plot:
        lines = [
            {
                "model": f"{row['model']}, {row['mode']}, {row['execution']}, batch {row['batch']}",
                "image size, pixels": row["size"],
                "ms per image": row["ms"] / row["batch"],
            }
            for row in rows
        ]
        write_plot(arguments.plot, lines, "image size, pixels", "ms per image", "model")


def run_kernels(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    ceilings = Ceilings.measure(device)
    print(f"ceilings: {ceilings}")
    for name in arguments.cases:
        case = {**KERNEL_CASES, **DUALITY_CASES, **TREE_CASES, **MAP_CASES}[name]
        if arguments.batch:
            case = replace(case, batch=arguments.batch)
        on_cpu = ["native", "grouped"] if name in KERNEL_CASES else ["chunked"] if name in DUALITY_CASES else ["native"]
        if name in MAP_CASES:
            on_cpu = ["bags" if case.groups else "convolutions"]
        backends = arguments.backends or (["triton"] if device.type == "cuda" else on_cpu)
        how = (device, DTYPES[arguments.dtype], ceilings, backends)
        if name in DUALITY_CASES:
            yield from benchmark_duality(case, *how)
        elif name in TREE_CASES:
            yield from benchmark_tree(case, *how)
        elif name in MAP_CASES:
            yield from benchmark_map(case, *how)
        elif arguments.orders and not case.wavefront:  # which follows none
            orders = order_names() if arguments.orders == ["all"] else arguments.orders
            yield from benchmark_orders(case, orders, *how)
        else:
            yield from benchmark_kernel(case, *how)
        print(f"  {name} done", file=sys.stderr)


def run_models(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    dtype = DTYPES[arguments.dtype]
    executions = [Execution.EAGER]
    executions += [Execution.COMPILED] if arguments.compile else []
    executions += [Execution.GRAPH] if arguments.graph else []
    executions += [Execution.COMPILED_GRAPH] if arguments.compile and arguments.graph else []
    modes = (False, True) if arguments.train else (False,)
    runs = [(how, mode, arguments.batch) for how in executions for mode in modes]
    runs += [(how, False, 1) for how in executions] if arguments.latency and arguments.batch > 1 else []
    names, failures = arguments.names or zoo(), []
    for name in names:
        check_known(name)
    for name in names * arguments.rounds:
        for size in arguments.sizes:
            try:
                facts = {"gflops": model_flops(name, size).total / 1e9, **(published(name) if size == 224 else {})}
                for execution, training, batch in runs:
                    how = {"execution": execution, "training": training, "seconds": arguments.seconds}
                    yield benchmark_model(name, size, batch, device, dtype, **how) | facts
                print(f"  {name} {size} done", file=sys.stderr)
            except Exception as error:  # of whatever kind: the others are measured all the same
                failures.append(f"{name} at {size} px: {error}")
                print(f"  {failures[-1]}", file=sys.stderr)
    if failures:
        raise ConfigError(f"not or not wholly measured: {'; '.join(dict.fromkeys(failures))}")


def quickest(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Of the rows of a model that was run in one way several times, the one with the least time, at the first's place.

    What else a host does takes time, and never gives any: the quickest is the least disturbed.
    """
    found = {}
    for row in rows:
        what = tuple(row[column] for column in ("model", "size", "batch", "mode", "execution"))
        found[what] = min(found.get(what, row), row, key=lambda each: each["ms"])
    return list(found.values())


def zoo() -> list[str]:
    """A model or two of every family, and those of timm's that docs/zoo.md has beside them."""
    baselines = yaml.safe_load(RESULTS.read_text(encoding="utf-8"))["baselines"]
    return [*(name for family in FAMILIES.values() for name in family.measured), *baselines]


def run_heads(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    from vssm.mm.runtime.config import load_config
    from vssm.mm.tasks.complexity import SIZES, benchmark_config

    for path in arguments.configs:
        config = load_config(path)
        size = tuple(arguments.size or SIZES[config.default_scope])
        backbone, whole = benchmark_config(config, size, arguments.batch, device, DTYPES[arguments.dtype])
        stated = published(path.stem) if size == SIZES[config.default_scope] else {}
        yield {"config": path.stem, **backbone}
        yield {"config": path.stem, **whole, **stated}
        print(f"  {path.stem} done", file=sys.stderr)


def run_host(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    for name in arguments.names:
        check_known(name)
        for training in (False, True):
            try:
                yield benchmark_host(name, training)
            except ValueError as error:  # a sentence for the user
                raise ConfigError(str(error)) from error


def run_exports(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    for name in arguments.names:
        check_known(name)
    for name in arguments.names:
        for form in arguments.formats:
            torch.manual_seed(0)
            model = create_model(name, **(_cut(name, arguments.blocks) if arguments.blocks else {}))
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                made = export(model, Path(folder) / f"{name}{FORMATS[form].suffix}", form)
                yield {
                    "model": name,
                    "format": form,
                    "blocks": arguments.blocks or "all",
                    "ms": made.milliseconds,
                    "eager_ms": made.eager,
                    "difference": made.difference,
                    "mb": made.path.stat().st_size / 1e6,
                    "seconds": time.perf_counter() - start,
                }
            print(f"  {name} {form} done", file=sys.stderr)


def _cut(name: str, blocks: int) -> dict[str, object]:
    """Arguments with which a model of ours has at most so many blocks a stage."""
    family = next((family for family in FAMILIES.values() if name in family.models), None)
    if family is None:
        raise ConfigError(f"--blocks: {name} is no model of this library; leave the option out")
    variant = family.models[name]
    parameters = inspect.signature(variant.model or family.model).parameters
    if "depth" in parameters:
        return {"depth": blocks}
    return {
        "depths": tuple(min(depth, blocks) for depth in variant.arguments.get("depths", parameters["depths"].default))
    }


def published(name: str) -> dict[str, object]:
    """Published parameters and operations of a model at its input size, or of the model that a recipe trains."""
    entries = _entries()
    if name not in entries:
        return {}
    stated = entries[name].get("published", {})
    return {"published_parameters": stated.get("parameters"), "published_gflops": stated.get("flops")}


@cache
def _entries() -> dict[str, dict[str, Any]]:
    """What model_cards/results.yaml says of each model and recipe, by their names."""
    results = yaml.safe_load(RESULTS.read_text(encoding="utf-8"))["families"]
    kinds = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))["kinds"]
    entries = {}
    for family in FAMILIES.values():
        numbers = results.get(family.name, {})
        for model, variant in family.models.items():
            entries[model] = numbers.get("models", {}).get(variant.name, {})
        for kind, models in numbers.get("downstream", {}).items():
            for model, entry in models.items():
                entries[Path(kinds[kind]["file"].format(family=family.name, model=model)).stem] = entry
    return entries
