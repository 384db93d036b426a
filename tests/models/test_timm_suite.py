"""timm's own tests/test_models.py, run over the models of this package.

The file is the one of the installed timm version, taken from its source distribution: downloaded once into the user's
cache folder, or given by the environment variable VSSM_TIMM_TEST_MODELS. It is not part of this repository.

Plain models (Vim) give token sequences, not maps, and go through the tests that timm has for such models, as its own
vision transformers do.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
from families import CLASSES, model_class

from vssm.models import FAMILIES, Plain

# Every name that timm should know, with the family and the variant behind it.
DECLARED = {name: (family, variant) for family in FAMILIES.values() for name, variant in family.models.items()}
SIZES = {model_class(name): sizes for name, sizes in CLASSES}


def small(name: str) -> dict[str, Any]:
    """A variant's arguments with the sizes of its class's small model, and of three blocks, which timm expects."""
    model = model_class(name)
    sizes = SIZES[model]
    return {**DECLARED[name][1].arguments, **sizes, **({"depth": 3} if issubclass(model, Plain) else {})}


def architectures(cfgs: bool) -> dict[str, dict[str, Any]]:
    """Variants made small. Of those that are then the same, but for their configurations or with these, the first."""
    found: dict[str, tuple] = {}
    for name in (variant.name for family in FAMILIES.values() for variant in family.variants):
        same = (model_class(name), cfgs and DECLARED[name][1].cfg, small(name))
        if same not in found.values():
            found[name] = same
    return {name: arguments for name, (_, _, arguments) in found.items()}


SMALL, BUILT = architectures(cfgs=True), architectures(cfgs=False)
PLAIN = [name for name in SMALL if issubclass(model_class(name), Plain)]
PYRAMIDS = [name for name in SMALL if name not in PLAIN]

# What they say does not depend on width, depth and resolution. Published sizes run in tests/bench/test_flops.py.
SIDE = 96  # no map of it is as wide as it has channels, by which timm tells layouts apart
SELECTION = {
    "test_model_forward": BUILT,
    "test_model_backward": BUILT,
    "test_model_default_cfgs": PYRAMIDS,
    "test_model_default_cfgs_non_std": PLAIN,
    "test_model_forward_features": [name for name in PYRAMIDS if name in BUILT],
    "test_model_forward_intermediates_features": BUILT,
    "test_model_forward_intermediates": BUILT,
    "test_prune_intermediate_layers_contract": BUILT,
    "test_model_forward_fx": BUILT,
    "test_model_backward_fx": BUILT,
}
CASES = [(test, model) for test, selected in SELECTION.items() for model in selected]

NOT_RUN = {
    # torch.jit.script cannot compile a registered custom op's Python side, with its checks and optional tensors.
    # torch.compile and torch.export take its place and are tested in test_models.py.
    "test_model_forward_torchscript",
    "test_model_forward_fx_torchscript",
    # These download every model's weights.
    "test_model_load_pretrained",
    "test_model_features_pretrained",
}


def source_file() -> Path:
    """timm's tests/test_models.py of the installed version."""
    if given := os.environ.get("VSSM_TIMM_TEST_MODELS"):
        return Path(given)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = caches / "vssm" / f"timm-{timm.__version__}" / "test_models.py"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            download(Path(folder)).replace(file)
    return file


def download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm"]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"timm=={timm.__version__}"], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        pytest.fail(
            f"the source distribution of timm {timm.__version__} could not be fetched from the package index "
            f"({reason}); give its tests/test_models.py in the environment variable VSSM_TIMM_TEST_MODELS",
            pytrace=False,
        )
    with tarfile.open(next(folder.glob("timm-*.tar.gz"))) as archive:
        member = next(name for name in archive.getnames() if name.endswith("/tests/test_models.py"))
        file = folder / "test_models.py"
        file.write_bytes(archive.extractfile(member).read())
    return file


@pytest.fixture(scope="module")
def timm_tests(request: pytest.FixtureRequest) -> ModuleType:
    file = source_file()
    for mark in set(re.findall(r"pytest\.mark\.(\w+)", file.read_text())):
        request.config.addinivalue_line("markers", f"{mark}: of timm's tests")
    spec = importlib.util.spec_from_file_location("timm_test_models", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in [name for name in vars(module) if name.startswith("TARGET_")]:  # sizes of images
        setattr(module, name, SIDE)
    return module


def parametrised(function: Callable, argument: str) -> list:
    """The values that timm's own decorator gives to an argument."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    return next((list(mark.args[1]) for mark in marks if mark.args[0] == argument), [])


@pytest.mark.parametrize(("test", "model"), CASES)
def test_timm(timm_tests: ModuleType, monkeypatch: pytest.MonkeyPatch, test: str, model: str) -> None:
    function = getattr(timm_tests, test)
    made_small = partial(timm.create_model, **SMALL[model])  # what timm's test asks for has priority
    monkeypatch.setattr(timm_tests, "create_model", made_small)
    arguments = {"model_name": model, "cfg_device": "meta"}
    arguments["batch_size"] = next(iter(parametrised(function, "batch_size")), 1)
    wanted = inspect.signature(function).parameters
    try:
        function(**{name: value for name, value in arguments.items() if name in wanted})
    except pytest.skip.Exception as skipped:
        pytest.fail(f"timm skipped its test: {skipped}")


def test_nothing_is_left_out(timm_tests: ModuleType) -> None:
    """Every test that timm runs over all its models is run here or named with the reason why not."""
    tests = {name: function for name, function in vars(timm_tests).items() if name.startswith("test_")}
    general = {name for name, function in tests.items() if len(parametrised(function, "model_name")) > 100}
    assert general == set(SELECTION) | NOT_RUN


def test_every_declared_model_is_known_to_timm() -> None:
    assert set(DECLARED) == {name for family in FAMILIES for name in timm.list_models(module=family)}
