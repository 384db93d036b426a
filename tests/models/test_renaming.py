"""Tables between official layouts of weights and ours."""

from __future__ import annotations

import pytest
import timm
import torch

from vssm.models import FAMILIES, Renaming, under

TABLE = Renaming(
    rows=(
        *under("layers.{i}", "stages.{i}", [("op", "mixer"), ("op.A_logs", "mixer.A_log", ((0, 1), 2))]),
        ("layers.{i}.downsample", "stages.{i+1}.downsample"),
        (("forwards.{i}", "backwards.{i}"), "scans.{i}", (0, (), 1)),
        (("up.{i}", "down.{i}"), "maps.{i}", ((0, 1), 2), True),
        ("both", ("first", "second")),
        ("matrix", "transposed", (1, 0)),
    ),
    older=(("old.{i}", "layers.{i}"),),
    dropped=("rope.",),
    outputs=(("pool", "head.pool"),),
)
OURS = {
    "stages.0.mixer.A_log": torch.arange(24.0).view(2, 3, 4),
    "stages.0.mixer.weight": torch.randn(5),
    "stages.1.downsample.weight": torch.randn(5),
    "scans.7": torch.randn(2, 3, 4),
    "maps.2": torch.randn(4, 3, 5),
    "first": torch.randn(2, 3),
    "second": torch.randn(2, 3),
    "transposed": torch.randn(2, 5),
    "norm.bias": torch.randn(2),
}
SHAPES = {name: value.shape for name, value in OURS.items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_tables_are_read_in_both_directions() -> None:
    official = TABLE.write(OURS)
    assert {name: tuple(value.shape) for name, value in official.items()} == {
        "layers.0.op.A_logs": (6, 4),
        "layers.0.op.weight": (5,),
        "layers.0.downsample.weight": (5,),
        "forwards.7": (3, 1, 4),
        "backwards.7": (3, 1, 4),
        "up.2": (6, 5),
        "down.2": (6, 5),
        "both": (4, 3),
        "matrix": (5, 2),
        "norm.bias": (2,),
    }
    torch.testing.assert_close(official["backwards.7"][:, 0], OURS["scans.7"][1])
    torch.testing.assert_close(official["down.2"][:3], OURS["maps.2"][2])
    torch.testing.assert_close(official["layers.0.op.A_logs"][3], OURS["stages.0.mixer.A_log"][1, 0])
    assert_same(TABLE.read(official, SHAPES), OURS)
    assert_same(TABLE.read(OURS, SHAPES), OURS)


def test_older_names_are_read_and_buffers_dropped() -> None:
    official = {name.replace("layers.", "old."): value for name, value in TABLE.write(OURS).items()}
    assert_same(TABLE.read({**official, "rope.cos": torch.zeros(2)}, SHAPES), OURS)


def test_what_is_no_official_name_stays_as_it_is() -> None:
    official = TABLE.write(OURS)
    found = TABLE.read({**official, "layers.9.op.weight": torch.zeros(1), "ours.alone": torch.zeros(1)}, SHAPES)
    assert set(found) - set(OURS) == {"layers.9.op.weight", "ours.alone"}


def test_an_incomplete_or_misshapen_file_is_not_completed() -> None:
    official = TABLE.write(OURS)
    lacking = {name: value for name, value in official.items() if name != "backwards.7"}
    assert set(OURS) - set(TABLE.read(lacking, SHAPES)) == {"scans.7"}
    wide = {**official, "layers.0.op.A_logs": torch.zeros(7, 4), "both": torch.zeros(3, 3), "up.2": torch.zeros(7, 5)}
    found = TABLE.read(wide, SHAPES)
    assert found["stages.0.mixer.A_log"].shape == (7, 4) and {"first", "maps.2"}.isdisjoint(found)


def test_linear_layers_may_be_convolutions() -> None:
    assert (
        Renaming().read({"a": torch.zeros(3, 2, 1, 1), "b": torch.zeros(1)}, {"a": torch.Size([3, 2])})["a"].dim() == 2
    )


def test_modules_are_found_by_their_weights() -> None:
    names = list(OURS)
    assert TABLE.module("layers.0.op", names) == "stages.0.mixer"
    assert TABLE.module("layers.0.downsample", names) == "stages.1.downsample"
    assert TABLE.module("pool", names) == "head.pool"
    with pytest.raises(KeyError, match=r"holds just the weights of the official 'layers\.5'"):
        TABLE.module("layers.5", names)


def test_a_row_has_one_side_of_several() -> None:
    with pytest.raises(ValueError, match="expected one on either side"):
        Renaming(((("a", "b"), ("c", "d")),)).official("c")


@pytest.mark.parametrize("name", [name for family in FAMILIES.values() for name in family.models])
def test_official_names_of_every_model_are_distinct(name: str) -> None:
    """Two of our tensors under one official name would overwrite each other in a written file."""
    model = timm.create_model(name, device="meta")
    names = [theirs for rule in model.renaming.rules(model.state_dict()) for theirs in rule.theirs]
    assert len(names) == len(set(names))
    assert set(names) <= set(model.renaming.write(model.state_dict()))
