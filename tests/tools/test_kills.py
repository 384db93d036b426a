"""A killed training goes on to the same weights, losses and scores; kills.py does so for all tasks, many times."""

import random
import signal
from functools import partial
from pathlib import Path

from forked import Command
from kills import TASKS, kill_test

SMALL = """
model = dict(backbone=dict(embed_dim=16, depth=2))
train_cfg['max_epochs'] = 2
"""


def test_a_training_killed_at_random_moments(tmp_path: Path) -> None:
    signals, train = (signal.SIGKILL, signal.SIGTERM), partial(Command, "train")
    config, _, changes = TASKS["classification"]
    small = (config, 32, changes + SMALL)
    counts = kill_test(small, tmp_path, 2, random.Random(1), signals, train)
    assert counts.completed and sum(counts.kills.values()) == 2
    assert (counts.left_over, counts.unreadable, counts.different) == (0, 0, 0), counts
