"""Every family has all that a family needs, and one that lacks something is told what."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from families import CLASSES, KINDS, ROOT, missing

from vssm.models import FAMILIES, Family, Pyramid, Variant

# A family in one file: it can be built and trained, and nothing else is there of it.
STUB = '''"""A family that has only its declaration."""

from vssm.models._family import Family, Variant
from vssm.models.vmamba import VMamba


class Stub(VMamba):
    """A network."""


FAMILY = Family(
    title="Stub",
    model=Stub,
    paper="2600.00001",
    repository="https://github.com/nobody/stub",
    commit="0" * 40,
    license="mit",
    owner="nobody",
    strides=(4, 8, 16, 32),
    small={"stub_tiny": {"dims": (8, 16), "depths": (1, 1)}},
    variants=(Variant("stub_tiny", "Stub-T", {"dims": (16, 32), "depths": (1, 1)}),),
    parts=(("stub", "Stub", Stub),),
)
'''
LACKS = (
    "no card model_cards/stub.md",
    "no numbers of stub_tiny in model_cards/results.yaml",
    "no recipe configs/classification/stub/stub_tiny_in1k.py",
    "no parity record",
    "no row in NOTICE",
)
NUMBERS = """
  stub:
    source: its README
    models:
      stub_tiny:
        parameters: 1
        gflops: 1.0
        published: {parameters: 1M, top1: 50.0}
"""
RECIPE = """
  stub:
  - {recipes: [in1k_swin], models: [stub_tiny], drop_path: 0.1}
"""


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_family_lacks_nothing(family):
    lacking = missing(family)
    assert not lacking, f"the family of vssm/models/{family.name}.py is not complete:\n" + "\n".join(lacking)


def test_every_family_and_every_model_class_is_among_the_kinds():
    assert {name for family in FAMILIES.values() for name in family.small} == {name for name, _ in KINDS}
    classes = {variant.model or family.model for family in FAMILIES.values() for variant in family.variants}
    assert len(CLASSES) == len(classes), "`small` of some family leaves out a model class"


class Stub(Pyramid):
    """Of a family that lacks everything."""


Stub.__module__ = "vssm.models.stub"


def stub() -> Family:
    variants = (Variant("stub_tiny", "Stub-T"),)
    facts = ("2600.00001", "https://github.com/nobody/stub", "0" * 40, "mit", "nobody")
    return Family("Stub", Stub, *facts, variants=variants, small={}, strides=(4,))


def test_a_family_that_lacks_everything_is_told_all_of_it():
    told = missing(stub())
    for sentence in (*LACKS, "no `parts`", "no `small`"):
        assert sum(sentence in each for each in told) == 1, sentence
    assert len(told) == len(LACKS) + 2


def test_small_models_are_those_of_the_family():
    assert "`small` names vim_tiny, which is none of its variants or aliases" in missing(
        replace(stub(), small={"vim_tiny": {}})
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of what families need, with a stub moved in."""
    for folder in ("vssm", "kernels", "tools", "model_cards", "configs", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    shutil.copytree(ROOT / "tests" / "parity", tmp_path / "tests" / "parity")
    for file in ("tests/families.py", "tests/test_families.py", "NOTICE", "README.md"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "vssm" / "models" / "stub.py").write_text(STUB)
    return tmp_path


# `make cards` and the guards, in one process: most of its time goes into imports.
WALK = """
import sys, pytest
sys.path.insert(0, "tools")
from model_tables import main

guards = ["-q", "-p", "no:cacheprovider", "-k", "lacks_nothing and stub", "tests/test_families.py"]
assert pytest.main(guards) == 1
print("END OF PART")
for file, head, text in {edits}:
    with open(file) as stream:
        before = stream.read()
    with open(file, "w") as stream:
        stream.write(before.replace(f"\\n{{head}}", f"\\n{{head}}{{text}}", 1))
assert main([]) == 0
print("END OF PART")
assert pytest.main(guards) == 1
"""
EDITS = [
    ("model_cards/results.yaml", "families:\n", NUMBERS),
    ("configs/recipes.yaml", "recipes:\n", RECIPE),
]


def test_a_family_in_one_file_makes_the_suite_name_what_it_lacks(house):
    """And once it has numbers and a recipe, `make cards` writes the rest but for what only a person can write."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (house, house / "kernels")))}
    command = [sys.executable, "-c", WALK.format(edits=EDITS)]
    done = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    before, cards, after = done.stdout.split("END OF PART\n")
    assert "1 failed" in before and "lacks_nothing[stub]" in before
    assert all(sentence in before for sentence in LACKS)
    assert "configs/classification/stub/stub_tiny_in1k.py" in cards
    assert "says 'TO BE WRITTEN'" in after and "no parity record" in after
    assert not any(sentence in after for sentence in LACKS if "parity" not in sentence)
