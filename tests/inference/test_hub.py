"""A repository for the hub is read by timm as it was written; transformers reads it in tests/client_checks.py."""

import json

import pytest
import timm
import torch
from families import CLASSES

from vssm.cli import hub as tool
from vssm.data import AlbumentationsTransform, TimmTransform
from vssm.errors import ConfigError, UserError
from vssm.inference import Predictor, load_predictor
from vssm.inference.hub import write_repository

LABELS = ["ant", "bee", "cat"]


def predictor(name, arguments):
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    return Predictor(model, TimmTransform(32, interpolation="bicubic", crop_pct=1.0), LABELS, {"name": name})


@pytest.mark.parametrize(("name", "arguments"), CLASSES)
def test_timm_reads_what_was_written(name, arguments, tmp_path):
    # Functions, such as routes of one's own, cannot stand in a file.
    plain = {key: value for key, value in arguments.items() if not any(map(callable, _leaves(value)))}
    made = predictor(name, plain)
    write_repository(made, tmp_path / "mine", "mit")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    images = torch.randn(2, 3, 32, 32)
    read = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True).eval()
    torch.testing.assert_close(read(images), made.model(images), rtol=0, atol=0)


def _leaves(value):
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, list | tuple) else [value]


def test_config_says_how_images_are_prepared_and_what_classes_are_called(tmp_path):
    write_repository(predictor(*CLASSES[0]), tmp_path / "mine", "mit")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["label_names"] == LABELS and config["num_classes"] == 3
    assert "num_classes" not in config["model_args"]  # transformers would give it to the model twice
    told = config["pretrained_cfg"]
    assert told["input_size"] == [3, 32, 32] and told["crop_pct"] == 1.0 and told["interpolation"] == "bicubic"
    assert told["license"] == "mit"
    assert "license: mit\n" in (tmp_path / "mine" / "README.md").read_text()


def test_a_repository_predicts_with_its_own_names(tmp_path):
    """They were numbers, or ImageNet's where there are 1000 classes."""
    names = [f"kind {index}" for index in range(1000)]
    model = timm.create_model("test_vit", img_size=32)
    write_repository(Predictor(model, TimmTransform(32), names, {"name": "test_vit"}), tmp_path / "mine", "mit")
    assert list(load_predictor(f"local-dir:{tmp_path / 'mine'}", device="cpu").labels) == names


def test_nothing_is_left_where_it_cannot_be_written(tmp_path, monkeypatch):
    made = predictor(*CLASSES[0])
    (tmp_path / "old").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        write_repository(made, tmp_path / "old", "mit")
    made.transform = AlbumentationsTransform([{"type": "Resize", "height": 32, "width": 32}])
    with pytest.raises(ConfigError, match="of the hub cannot say"):
        write_repository(made, tmp_path / "mine", "mit")
    made.transform = TimmTransform(32)
    monkeypatch.setattr("torch.equal", lambda *_: False)
    with pytest.raises(UserError, match="other outputs than the model"):
        write_repository(made, tmp_path / "mine", "mit")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_tool(tmp_path, capsys):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "new" / "mine"
    arguments = ["test_vit", "--checkpoint", str(tmp_path / "weights.pth"), "--license", "mit", "--out", str(out)]
    assert tool(arguments) == 0
    assert f"hf upload OWNER/mine {out}" in capsys.readouterr().out
    assert tool(arguments) == 1
    assert "exists already" in capsys.readouterr().err
