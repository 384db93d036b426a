"""What tests of configs share: the published recipes, what a config's head states, and models cut to one block a stage."""

import functools
import re
import sys
from pathlib import Path

from families import KINDS, ROOT, model_class
from mmengine.config import Config

from vssm.mm.runtime.config import load_config
from vssm.models import Plain

sys.path.append(str(ROOT / "tools"))
from _cards import Sources  # noqa: E402

SOURCES = Sources.read(ROOT)
RECIPES = SOURCES.recipes


@functools.cache
def loaded(path: str) -> Config:
    """A config, without the weights to start from or to learn from: these are downloads, with tests of their own."""
    config = load_config(ROOT / path)
    config.model.pop("teacher", None)
    for name in ("pretrained", "pretrained_cfg_overlay", "init_cfg"):
        config.model.backbone.pop(name, None)
    return config


def configs(folder: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs" / folder).rglob("*.py"))


def check_head(path: str, config: Config) -> str:
    """The three first lines state command, cost and score; the first two agree with the config. Returns the third."""
    command, cost, score = (ROOT / path).read_text().splitlines()[:3]
    assert score.startswith("# Score: ") and score.endswith(".")
    several = re.match(r"# Cost: (\d+) GPUs? x (\d+) images, (\d+) (epochs|steps)\b", cost)
    if several is None:  # on a CPU, or measured
        assert re.match(r"# Cost: .*\d (minutes|GPU)", cost)
        assert command in (
            f"# Command: python tools/train.py {path}",
            "# Command: python tools/demo.py (or: make demo)",
        )
        return score
    gpus, images, length = map(int, several.groups()[:3])
    nodes = f"--nnodes {gpus // 8} " if gpus > 8 else ""
    launch = f"torchrun {nodes}--nproc-per-node {min(gpus, 8)}" if gpus > 1 else "python"
    assert command == f"# Command: {launch} tools/train.py {path}" + (" --launcher pytorch" if gpus > 1 else "")
    assert images == config.train_dataloader.batch_size
    assert gpus * images == config.auto_scale_lr.base_batch_size
    assert length == config.train_cfg["max_epochs" if several[4] == "epochs" else "max_iters"]
    return score


def quick(model: str) -> dict:
    """Arguments that make a model of ours quick: those of the first kind of its class."""
    return next(arguments for name, arguments in KINDS if model_class(name) is model_class(model))


def one_block_a_stage(model: str, maps: int) -> dict:
    """Arguments that cut a backbone with so many maps to one block for each."""
    if issubclass(model_class(model), Plain):
        return {"depth": maps, "out_indices": tuple(range(maps)), "img_size": 64}
    return {"depths": (1, 1, 1, 1)}


def ident(path: str) -> str:
    return Path(path).stem
