"""Configuration files are checked before anything is built."""

import pytest
import torch

from vssm.errors import ConfigError
from vssm.mm.runtime.config import load_config, parse_options, set_precision, without_validation


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optim_wraper.type": "OptimWrapper"}, ["optim_wraper", "did you mean 'optim_wrapper'"]),
        ({"train_cfg.max_epoch": 3}, ["train_cfg", "max_epoch", "did you mean 'max_epochs'"]),
        ({"train_dataloader.batchsize": 3}, ["train_dataloader", "did you mean 'batch_size'"]),
        ({"train_dataloader.dataset.split_name": "x"}, ["train_dataloader.dataset (ShapesDataset)", "'split'"]),
        ({"model.type": "ImageClassifer"}, ["model", "did you mean 'ImageClassifier'"]),
        ({"model.label_smooth": 0.1}, ["model (ImageClassifier)", "did you mean 'label_smoothing'"]),
        ({"default_hooks.finite_loss.type": "FiniteLoss"}, ["default_hooks.finite_loss", "FiniteLossHook"]),
        ({"param_scheduler": {"type": "CosineAnealingLR"}}, ["param_scheduler", "CosineAnnealingLR"]),
        ({"optim_wrapper.optimizer.type": "AdmW"}, ["optim_wrapper.optimizer", "AdamW"]),
        ({"optim_wrapper.optimizer.weight_deca": 0.1}, ["optim_wrapper.optimizer (AdamW)", "weight_decay"]),
    ],
)
def test_misspelt_names_are_told_with_the_nearest(config_file, options, told):
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, options)
    for part in told:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_helper_variables_start_with_an_underscore(config_file):
    config_file.write_text(config_file.read_text() + "\nhelper = 3\n")
    with pytest.raises(ConfigError, match="no option 'helper'"):
        load_config(config_file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "absent.py")
    for text, told in (("model = dict(", "line 1"), ("model = undefined", "undefined"), ("_base_ = 'x.py'", "x.py")):
        (tmp_path / "wrong.py").write_text(text)
        with pytest.raises(ConfigError, match=told):
            load_config(tmp_path / "wrong.py")


def test_precision(small_config):
    set_precision(small_config, "bf16")
    assert small_config.optim_wrapper.type == "Bfloat16OptimWrapper"
    set_precision(small_config, "off")
    assert small_config.optim_wrapper.type == "OptimWrapper"
    if torch.cuda.is_available():
        set_precision(small_config, "fp16")
        assert small_config.optim_wrapper.type == "AmpOptimWrapper"
    else:
        with pytest.raises(ConfigError, match="fp16 needs a GPU"):
            set_precision(small_config, "fp16")


def test_without_validation(small_config, make_runner):
    without_validation(small_config)
    runner = make_runner(train_cfg__max_epochs=1)
    runner.train()
    assert runner.val_loop is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64,32", [64, 32]),
        ("(16)", (16,)),
        ("[windows(4),cross]", ["windows(4)", "cross"]),
        ("my images/b (1)", "my images/b (1)"),  # mmengine drops the spaces
        ("['my images','b']", ["my images", "b"]),
        ("(1,2),(3,4)", ((1, 2), (3, 4))),  # never ended
        ("[{'type':'TopAccuracy','topk':(1,)}]", [{"type": "TopAccuracy", "topk": (1,)}]),
        ("{'a':None}", {"a": None}),  # was text
    ],
    ids=str,
)
def test_values_of_the_command_line(text, value):
    assert parse_options([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize("text", ["(a),(b)", "{a: 1, b: 2}", "[{a:1,b:2}]", "[1,2"])
def test_values_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="--cfg-options key="):
        parse_options([f"key={text}"])
