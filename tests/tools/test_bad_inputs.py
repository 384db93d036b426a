"""Every bad input that was tried ends in its sentence, its exit code, and no file changed."""

import hashlib
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import bad_inputs
import pytest
import timm
import torch

from vssm import cli
from vssm.models import FAMILIES

_count = itertools.count()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, shapes_root: Path) -> Iterator[Path]:
    """The working directory of all rows."""
    root = tmp_path_factory.mktemp("bad_inputs")
    bad_inputs.make_files(root, shapes_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def contents(root: Path) -> dict[Path, str]:
    """A hash of each regular file."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("line", "code", "told"), bad_inputs.COMMANDS, ids=[row[0][:90] for row in bad_inputs.COMMANDS]
)
def test_commands(files: Path, capfd: pytest.CaptureFixture, line: str, code: int, told: str) -> None:
    name, *arguments = line.split()
    if name in ("train", "test") and "small.py" in arguments:
        # mmengine has one log for each name in a process.
        number = next(_count)
        arguments += ["--work-dir", f"runs/{number}", "--cfg-options", f"experiment_name=bad_{number}"]
    before = contents(files)
    try:
        found = getattr(cli, name)(arguments)
    except SystemExit as end:
        found = end.code
    said = capfd.readouterr().err
    assert found == code, said
    assert "Traceback" not in said and "weights_only" not in said
    assert re.search(told, said.splitlines()[-1]), said
    after = contents(files)
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_arguments_of_models(family) -> None:
    """Every family refuses them; arguments that it lacks are left out."""
    model, small = next(iter(family.small.items()))
    refused = 0
    for name, values in bad_inputs.ARGUMENTS.items():
        for value in values:
            with pytest.raises((ValueError, TypeError)) as caught:
                timm.create_model(model, **{**small, name: value})
            if caught.type is TypeError:
                assert f"unexpected keyword argument '{name}'" in str(caught.value)
            else:
                assert re.match(rf"(?:{name}|dims) (?:is|has) .*; expected ", str(caught.value), re.DOTALL)
                refused += 1
    assert refused > 30


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_arguments_of_model_classes(family) -> None:
    """The same without timm: before anything is computed from them."""
    name, small = next(iter(family.small.items()))
    variant = family.models[name]
    model_class = variant.model or family.model
    known = inspect.signature(model_class).parameters
    arguments = {**variant.arguments, **small}
    for name, values in {**bad_inputs.ARGUMENTS, "scan_order": (3, "hilbert", None)}.items():
        for value in values if name in known else ():
            if value is None and known[name].default is None:
                continue
            with pytest.raises(ValueError, match=rf"(?:{name}|dims) (?:is|has) .*; expected "):
                model_class(**{**arguments, name: value})


@pytest.mark.parametrize("indices", [(9,), (-9,), 99, 0, "x", (1.5,), ()])
def test_maps_that_a_model_has_not(indices: object) -> None:
    family = FAMILIES["vmamba"]
    name, small = next(iter(family.small.items()))
    with pytest.raises(ValueError, match=r"out_indices is .*; expected a list of numbers from -4 to 3"):
        timm.create_model(name, **small, features_only=True, out_indices=indices)
    with pytest.raises(ValueError, match=r"out_indices is .*; expected a list of numbers"):
        timm.create_model(name, **small).forward_intermediates(torch.zeros(1, 3, 32, 32), indices=indices)


def test_names_that_are_no_text(files: Path, capfd: pytest.CaptureFixture) -> None:
    """Bytes that are not UTF-8 in the name of an image and of the picture."""
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    (files / name).write_bytes((files / "photo.png").read_bytes())
    out = b"out\xff.png".decode(errors="surrogateescape")
    call = [name, "--model", "test_vit", "--checkpoint", "good.pth", "--out", out]
    assert cli.predict(call) == 0, capfd.readouterr().err
    assert (files / out).is_file()
