"""Studies: train several models the same way with several seeds, then measure each alone; see configs/studies."""

import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from vssm.bench import Execution, benchmark_model, environment
from vssm.errors import ConfigError
from vssm.files import file_stem, write_atomically
from vssm.inference.create import with_name
from vssm.inference.saved import to_plain
from vssm.mm.runtime.config import check_config, check_names, load_config, read_config
from vssm.processes import available_cores, die_with_parent

OPTIONS = ("title", "recipe", "runs", "seeds", "measured")
MEASURED = ("size", "batch", "seconds")
RESULT, COSTS = "result.json", "costs.json"
LOG_LINES = 15
# What `measure` finds of each model.
MEASUREMENTS = (
    "parameters_m",
    "size",
    "batch",
    "dtype",
    "execution",
    "infer_images_per_second",
    "train_images_per_second",
    "infer_peak_gib",
    "train_peak_gib",
)

# Called after each training with (trainings done, total, sentence).
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Study:
    """A study, read from its file.

    Args:
        title: of its table and plot.
        runs: for each label the complete config of its trainings.
        seeds: each run is trained once with each.
        measured: for throughput and memory: `size` of images in pixels, `batch`, and `seconds` per measurement.
    """

    title: str
    runs: dict[str, Config]
    seeds: tuple[int, ...]
    measured: dict[str, float]


@dataclass(frozen=True)
class Training:
    """One training of a study.

    Args:
        label, seed: of its run.
        config: the file for tools/train.py.
        folder: of its log, the files of tools/train.py, and its result.
        commit: of the code.
    """

    label: str
    seed: int
    config: Path
    folder: Path
    commit: str

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}"

    @property
    def stamp(self) -> dict[str, str]:
        """What must be unchanged for an earlier result to be reused."""
        return {"commit": self.commit, "config": self.config.read_text()}


def load_study(path: Path, options: dict | None = None, seeds: Sequence[int] | None = None) -> Study:
    """Read a study's file and the configs of its runs.

    Args:
        path: a Python file in mmengine's text style: `title`, `recipe` (a config beside it), `runs` (for each label the
            changes to the recipe), `seeds` and `measured`.
        options: changes for all runs, as from ``--cfg-options``.
        seeds: replace the file's.

    Raises:
        ConfigError: a missing or unknown option, an invalid run, labels that are too similar, a seed twice.
    """
    file = read_config(path)
    given = [name for name in file if not name.startswith("_")]
    check_names(str(path), "option", given, OPTIONS)
    check_names(f"{path}: measured", "option", file.get("measured", ()), MEASURED)
    missing = [name for name in OPTIONS if not file.get(name)]
    missing += [f"measured.{name}" for name in MEASURED if name not in (file.get("measured") or ())]
    if missing:
        raise ConfigError(f"{path} is no study: missing or empty are {', '.join(missing)}")
    runs = {}
    for label, changes in file.runs.items():
        config = load_config(path.parent / file.recipe, changes)
        config.merge_from_dict(options or {})
        check_config(config)
        runs[label] = config
    if len({file_stem(label) for label in runs}) < len(runs):
        raise ConfigError(f"{path}: labels must differ in letters or digits, as folders are named after them")
    seeds = tuple(seeds or file.seeds)
    if len({*seeds}) < len(seeds):
        raise ConfigError(
            f"{path}: the seeds are {', '.join(map(str, seeds))}; expected each once, as results would count twice"
        )
    return Study(file.title, runs, seeds, to_plain(file.measured))


def make_data(study: Study) -> None:
    """Build every data set once, so that embedded sets are drawn before trainings start at the same time.

    Raises:
        ConfigError: data that are missing or cannot be written.
    """
    for config in study.runs.values():
        for loader in (config.train_dataloader, config.val_dataloader):
            try:
                DATASETS.build(loader.dataset)
            except (ValueError, OSError, ImportError) as error:
                raise ConfigError(f"data: {error}") from error


def train_study(
    study: Study, directory: Path, command: Sequence[str], parallel: int, report: Report
) -> tuple[list[dict], list[str]]:
    """Train every run with every seed, each in its own process; results of finished trainings are reused.

    A training that fails does not stop the others. All runs are trained with the first seed before the second, so that
    early results compare all of them.

    Args:
        study: what to train.
        directory: of the study, with a folder for each run.
        command: of tools/train.py; a config, ``--seed`` and ``--work-dir`` are added.
        parallel: trainings at a time, spread over the GPUs that this process may use. One small training does not fill
            a GPU, because it waits for the CPU.
        report: called after each training.

    Returns:
        One row per training that succeeded: label, seed, top1 in percent on the held-out images, seconds. And a text
        for each that failed, with the end of its log.
    """
    trainings = _prepare(study, directory)
    results = {training: earlier for training in trainings if (earlier := _earlier_result(training)) is not None}
    for done, (training, result) in enumerate(results.items(), 1):
        report(done, len(trainings), f"{training}: {result['top1']:.1f} % (from an earlier run)")
    failures = []
    for training, code, seconds in _run_all([t for t in trainings if t not in results], command, parallel):
        top1 = last_accuracy(training.folder) if code == 0 else None
        if top1 is None:
            failures.append(_failure(training, code))
            sentence = f"{training}: failed"
        else:
            results[training] = {"top1": top1, "seconds": seconds}
            write_atomically(training.folder / RESULT, json.dumps({**results[training], **training.stamp}))
            sentence = f"{training}: {top1:.1f} % ({seconds:.0f} s)"
        report(len(results) + len(failures), len(trainings), sentence)
    by_run = sorted(results, key=lambda training: list(study.runs).index(training.label))
    return [{"label": training.label, "seed": training.seed, **results[training]} for training in by_run], failures


def measure(study: Study, directory: Path, device: torch.device, report: Report) -> tuple[dict[str, dict], list[str]]:
    """Throughput and peak memory of each run's model, alone on the device, in inference and in training steps.

    On a GPU as CUDA graphs, because the time that Python takes to launch the kernels of small models varies. What was
    measured earlier is reused, and a model that cannot be measured does not stop the others.

    Args:
        study: its models are built with initial weights.
        directory: of the study, as in `train_study`.
        device: a GPU computes in bfloat16, a CPU in float32.
        report: called after each model.

    Returns:
        The costs of each label: parameters, images per second and GiB of GPU memory (None on a CPU), nothing but None
        where it failed. And a text for each failure.
    """
    costs, failures = {}, []
    facts = {name: fact for name, fact in environment(device).items() if name != "command"}
    for done, (label, config) in enumerate(study.runs.items(), 1):
        arguments = with_name(to_plain(config.model.backbone))
        file = directory / file_stem(label) / COSTS
        stamp = {"of": {**facts, **study.measured, "arguments": json.loads(json.dumps(arguments))}}
        earlier = _unchanged(file, stamp)
        if earlier is not None and set(earlier) == set(MEASUREMENTS):
            costs[label], sentence = earlier, "measured by an earlier run"
        else:
            try:
                costs[label] = _costs(arguments, study.measured, device)
            except Exception as error:  # whatever it is: hours of training are not lost for it
                costs[label], sentence = dict.fromkeys(MEASUREMENTS), "failed"
                failures.append(f"{label} could not be measured: {type(error).__name__}: {error}")
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps({**costs[label], **stamp}))
                sentence = f"{costs[label]['train_images_per_second']:,.0f} img/s in training"
        report(done, len(study.runs), f"{label}: {sentence}")
    return costs, failures


def _costs(arguments: dict, measured: dict[str, float], device: torch.device) -> dict[str, object]:
    gpu = device.type == "cuda"
    name, arguments = arguments["name"], {key: value for key, value in arguments.items() if key != "name"}
    infer, train = (
        benchmark_model(
            name,
            measured["size"],
            measured["batch"],
            device,
            torch.bfloat16 if gpu else torch.float32,
            execution=Execution.GRAPH if gpu else Execution.EAGER,
            training=mode,
            arguments=arguments,
            seconds=measured["seconds"],
        )
        for mode in (False, True)
    )
    found = {f"{mode}_{key}": value for mode, row in (("infer", infer), ("train", train)) for key, value in row.items()}
    return {key: {**infer, **found}[key] for key in MEASUREMENTS}


def last_accuracy(folder: Path) -> float | None:
    """The last top-1 accuracy in the newest log of a training's folder, in percent; None if there is none."""
    logs = sorted(folder.glob("*/vis_data/scalars.json"))  # each start has a folder, named by its time
    lines = map(_read_json, logs[-1].read_text(errors="replace").splitlines() if logs else ())
    scores = [line["accuracy/top1"] for line in lines if isinstance(line.get("accuracy/top1"), int | float)]
    return scores[-1] if scores else None


def _read_json(text: str) -> dict:
    """A line of a log or a result; empty if it is damaged, as by a full disk or a kill."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _prepare(study: Study, directory: Path) -> list[Training]:
    """Write the complete configs of the runs, for their trainings and for readers who repeat one."""
    folders = {label: directory / file_stem(label) for label in study.runs}
    for label, config in study.runs.items():
        folders[label].mkdir(parents=True, exist_ok=True)
        write_atomically(folders[label] / "config.py", config.pretty_text)
    commit = environment(torch.device("cpu"))["commit"]
    return [
        Training(label, seed, folder / "config.py", folder / f"seed_{seed}", commit)
        for seed in study.seeds
        for label, folder in folders.items()
    ]


def _earlier_result(training: Training) -> dict[str, float] | None:
    """The result of an earlier training with the same code and config; None if there is none that can be read."""
    result = _unchanged(training.folder / RESULT, training.stamp)
    if result is None or not all(isinstance(result.get(name), int | float) for name in ("top1", "seconds")):
        return None
    return result


def _unchanged(file: Path, stamp: dict[str, object]) -> dict | None:
    """What a JSON file holds beside its stamp; None if it is absent or damaged, or its stamp another."""
    values = _read_json(file.read_text(errors="replace")) if file.is_file() else {}
    return None if any(values.pop(name, None) != value for name, value in stamp.items()) else values


def _run_all(waiting: list[Training], command: Sequence[str], parallel: int) -> Iterator[tuple[Training, int, float]]:
    """Run trainings, `parallel` at a time; yields each with its exit code and seconds when it ends."""
    threads = str(max(1, available_cores() // parallel))
    environ = {"OMP_NUM_THREADS": threads, **os.environ}
    seen = _gpus()
    gpus = [seen[slot % len(seen)] for slot in range(parallel)]  # one for each simultaneous training
    running: dict[Training, tuple[subprocess.Popen, str, float]] = {}
    waiting = list(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                training, gpu = waiting.pop(0), gpus.pop(0)
                process = _start(training, command, {**environ, "CUDA_VISIBLE_DEVICES": gpu})
                running[training] = (process, gpu, time.monotonic())
            time.sleep(0.1)
            for training, (process, gpu, start) in list(running.items()):
                if process.poll() is not None:
                    del running[training]
                    gpus.append(gpu)
                    yield training, process.returncode, time.monotonic() - start
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()


def _gpus() -> list[str]:
    """The names in CUDA_VISIBLE_DEVICES of the GPUs that this process may use; one empty name if there are none."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return (names.split(",") if names else list(map(str, range(count))))[:count] or [""]


def _start(training: Training, command: Sequence[str], environ: dict[str, str]) -> subprocess.Popen:
    """Start a training. It gets SIGTERM, which lets it save, when this process ends, however that ends."""
    training.folder.mkdir(parents=True, exist_ok=True)
    tied = functools.partial(die_with_parent, os.getpid(), signal.SIGTERM)
    arguments = [str(training.config), "--seed", str(training.seed), "--work-dir", str(training.folder)]
    with (training.folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [*command, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environ,
            preexec_fn=tied,
        )


def _failure(training: Training, code: int) -> str:
    log = training.folder / "log.txt"
    end = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    what = f"failed with exit code {code}" if code else "logged no accuracy/top1: has the recipe a validation?"
    return f"the training {training} {what}; the end of {log}:\n{end}"
