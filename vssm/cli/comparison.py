"""tools/compare.py: trains the models of a study, measures their costs, and writes a table and a plot."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vssm.bench import environment, write_csv
from vssm.bench.summary import COSTS, study_table, summarise
from vssm.cli.arguments import CHECKOUT
from vssm.errors import TrainingError
from vssm.files import check_outputs, make_directory
from vssm.mm.runtime.config import parse_options
from vssm.mm.tasks.study import MEASUREMENTS, Report, load_study, make_data, measure, train_study
from vssm.viz import draw_comparison

TRAIN = (sys.executable, str(CHECKOUT / "tools/train.py"))


def run_study(arguments: argparse.Namespace) -> None:
    """Train and compare as the arguments of `compare_parser` say."""
    name = arguments.config.stem
    study = load_study(arguments.config, parse_options(arguments.cfg_options), arguments.seeds)
    directory = arguments.work_dir or Path("work_dirs") / name
    out = arguments.out or directory
    make_directory(directory, "--work-dir")
    make_directory(out, "--out")
    check_outputs([out / f"{name}{end}" for end in (".csv", ".md", ".png")], "--out", arguments.overwrite)

    print(study.title)
    make_data(study)
    rows, failures = with_bar(
        "trainings", lambda report: train_study(study, directory, TRAIN, arguments.parallel, report)
    )
    if not rows:
        raise TrainingError("\n".join(failures))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = {row["label"] for row in rows}
    study = replace(study, runs={label: config for label, config in study.runs.items() if label in trained})

    def write(costs: dict[str, dict]) -> str:
        """The table, also written with CSV and plot."""
        facts = environment(device)
        measured = [{**row, **costs.get(row["label"], dict.fromkeys(MEASUREMENTS))} for row in rows]
        table = study_table([{**row, **facts} for row in measured])
        write_csv(out / f"{name}.csv", measured, facts)
        (out / f"{name}.md").write_text(f"# {study.title}\n\n{table}\n![accuracy and costs]({name}.png)\n")
        draw(measured, study.title, out / f"{name}.png")
        return table

    write({})  # an interrupted run leaves its accuracies
    costs, more = with_bar("measured", lambda report: measure(study, directory, device, report))
    print(f"\n{write(costs)}\n{out / name}.csv, .md and .png")
    if failures := failures + more:
        advice = "the table has the other results, which are saved: for the rest run the same command with --overwrite"
        raise TrainingError("\n".join([*failures, advice]))


def draw(rows: list[dict], title: str, path: Path) -> None:
    models = summarise(rows)
    costs = {head: {model.label: model.costs[name] for model in models} for name, head, _ in COSTS}
    measured = {head: numbers for head, numbers in costs.items() if None not in numbers.values()}
    draw_comparison({model.label: model.scores for model in models}, measured, title, path=path)


def with_bar(what: str, work: Callable[[Report], object]) -> object:
    """Run `work` with a progress bar on a terminal, and a line for each step; returns its result."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(what, total=None)

        def report(done: int, total: int, sentence: str) -> None:
            progress.update(task, completed=done, total=total)
            progress.console.print(f"  {done}/{total}  {sentence}", highlight=False, soft_wrap=True)

        return work(report)
