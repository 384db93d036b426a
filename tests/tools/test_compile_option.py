"""What the tools run a model with: asked for, and by themselves on a GPU, where the results stay the same."""

import json
import re
from collections import Counter
from functools import partial
from typing import ClassVar

import numpy
import pytest
import torch
from PIL import Image
from small_training import logged

from vssm import cli
from vssm.cli.arguments import predict_parser, train_parser
from vssm.cli.training import prepare_config
from vssm.nn import compilation, graph_module

VIM = """
model['backbone'] = dict(name='vim_tiny', num_classes=10, img_size=32, depth=3, embed_dim=64, drop_path_rate=0.3)
"""
# Six images a step, and two in the last of an epoch.
SMALL = """
train_dataloader['batch_size'] = 6
train_dataloader['drop_last'] = False
val_dataloader['batch_size'] = 3
optim_wrapper['clip_grad'] = dict(max_norm=1.0)
optim_wrapper['accumulative_counts'] = 2
"""


@pytest.mark.parametrize("in_config", ["", "compile = dict(backend='eager')\n"])
def test_the_command_line_decides_over_the_config(config, tmp_path, in_config):
    config.write_text(config.read_text() + in_config)

    def chosen(*options):
        arguments = train_parser().parse_args([str(config), "--work-dir", str(tmp_path / "work"), *options])
        return prepare_config(arguments).get("compile")

    options = {"backend": "eager"} if in_config else None
    assert chosen() == options
    assert chosen("--compile") == chosen("--compile", "on") == (options or True)
    assert chosen("--compile", "off") is False


def test_predictions_have_the_same_choice():
    assert [predict_parser().parse_args(["a.png", *more]).compile for more in ([], ["--compile", "off"])] == [
        None,
        "off",
    ]


def numbers_with_and_without_graphs(config, tmp_path, amp):
    """Losses, scores and predictions of the three tools in both cases."""
    images = [tmp_path / f"{number}.png" for number in range(9)]
    noise = numpy.random.default_rng(0).integers(0, 255, (len(images), 40, 60, 3), dtype=numpy.uint8)
    for path, pixels in zip(images, noise, strict=True):
        Image.fromarray(pixels).save(path)
    found = []
    for options in ([], ["--compile", "off"]):
        work = tmp_path / "_".join(["work", *options])
        assert cli.train([str(config), "--work-dir", str(work), "--amp", amp, "--seed", "1", *options]) == 0
        checkpoint, out = str(work / "epoch_3.pth"), work / "out.png"
        tested = [str(config), checkpoint, "--work-dir", str(work / "test"), "--amp", amp]
        assert cli.test([*tested, *options]) == 0
        predicted = [*map(str, images), "--checkpoint", checkpoint, "--batch", "2", "--out", str(out)]
        assert cli.predict([*predicted, *options]) == 0
        log, of_test = (next(folder.glob("2*/2*.log")).read_text() for folder in (work, work / "test"))
        assert "no CUDA graph" not in log + of_test
        for each in (log, of_test):
            assert ("the model runs as CUDA graphs" in each) == (not options)
        losses = [line["loss"] for line in logged(work) if "loss" in line]
        scores = re.findall(r"accuracy/top1: ([\d.]+)", log + of_test)
        assert (len(losses), len(scores)) == (18, 4)
        predictions = [each["classes"] for each in json.loads(out.with_suffix(".json").read_text())]
        found.append((losses, scores, predictions))
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_the_tools_give_the_same_numbers_with_and_without_graphs(config, tmp_path, amp, monkeypatch):
    """With averaged weights, mixup, drop path and a last batch of another size."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config.write_text(config.read_text() + SMALL + VIM)
    found = numbers_with_and_without_graphs(config, tmp_path, amp)
    assert found[0] == found[1]


class Recorded:
    """Stands for a graph on a machine without a GPU: a call more when it is made, and eager calls that are counted."""

    made: ClassVar[list] = []
    replayed: ClassVar[list] = []

    def __init__(self, module, x):
        self.module = module
        module(x)
        Recorded.made.append((module.training, len(x)))

    def __call__(self, x):
        Recorded.replayed.append((self.module.training, len(x)))
        return self.module._call_impl(x)

    def awaits_backward(self):
        return False


def test_all_three_tools_replay_what_repeats(config, tmp_path, monkeypatch):
    """The odd last batches of training and validation are eager; averaged weights are seen by the same graph."""
    monkeypatch.setattr(compilation, "_is_on_gpu", lambda module: True)
    monkeypatch.setattr(compilation, "graph_module", partial(graph_module, capture=Recorded, device="cpu"))
    # Of the CPU's random numbers there can be none in a graph.
    config.write_text(config.read_text() + SMALL + "model['backbone']['drop_path_rate'] = 0.0\n")
    found = numbers_with_and_without_graphs(config, tmp_path, "bf16")
    assert found[0] == found[1]
    # A training makes two, a test one and predictions one.
    assert Recorded.made == [(True, 6), (False, 3), (False, 3), (False, 2)]
    counts = Counter(Recorded.replayed)
    assert counts == {(True, 6): 3 * 5 - 2, (False, 3): (3 * 6 - 2) + (6 - 2), (False, 2): 4 - 2}
