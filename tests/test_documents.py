"""The documents are true: their code runs, their commands, paths and links exist, their numbers are the models'."""

import importlib
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from families import ROOT
from forked import run_code

from vssm.bench import write_csv
from vssm.cli import arguments
from vssm.models import FAMILIES
from vssm.scan import order_names

DOCUMENTS = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
for pattern in ("kernels/**/*.md", "model_cards/*.md", "docs/*.md"):
    DOCUMENTS += sorted(ROOT.glob(pattern))
CARDS = [document for document in DOCUMENTS if document.parent.name == "model_cards"]
RESULTS = yaml.safe_load((ROOT / "model_cards" / "results.yaml").read_text())

# What examples use and the tests' environment has not.
CLIENTS = ("peft", "segmentation_models_pytorch", "transformers")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
MODELS = {name: model for entry in RESULTS["families"].values() for name, model in entry["models"].items()}


def examples() -> list:
    """Every python block of every document, the text block that follows it at once, its expected output, and whether it
    needs a process of its own: `make cards` writes one text into all cards, so that the first shows what it imports."""
    block = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
    found = []
    for document in DOCUMENTS:
        name = document.relative_to(ROOT).as_posix()
        for number, match in enumerate(block.finditer(document.read_text()), 1):
            absent = [package for package in CLIENTS if f"{package} " in match[1] and find_spec(package) is None]
            marks = [pytest.mark.skip(f"needs {', '.join(absent)}")] if absent else []
            alone = document.parent.name != "model_cards" or document == CARDS[0]
            found.append(pytest.param(*match.groups(), alone, id=f"{name}-{number}", marks=marks))
    return found


@pytest.mark.parametrize(("code", "expected", "alone"), examples())
def test_example_runs_and_prints_what_it_says(code, expected, alone, tmp_path, capsys):
    if alone:
        printed = run_code(code, tmp_path)
    else:
        exec(compile(code, "<example>", "exec"), {"__name__": "__main__"})
        printed = capsys.readouterr().out
    assert expected is None or printed == expected


def test_readme_begins_with_the_two_commands():
    head = (ROOT / "README.md").read_text().splitlines()[:8]
    commands = [line.split("#")[0].strip() for line in head if line.startswith("    make ")]
    assert commands == ["make demo", "make test"]


def test_readme_has_an_example():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "timm.create_model" in blocks[0] and len(blocks[0].splitlines()) <= 10


@every_document
def test_named_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", document.read_text(), re.MULTILINE))
    assert named <= targets


@every_document
def test_named_scripts_and_configs_exist(document):
    named = set(re.findall(r"\b(?:tools|configs)/[\w/]+\.py\b", document.read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def tool_commands() -> list:
    """(tool, its arguments) of every command line in the README, the guides and the heads of the configs."""
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").rglob("*.py"))]
    command = re.compile(
        r"^(?:    |# Command: )(?:python|torchrun .*?) tools/(train|test|predict|visualize|compare)\.py (.*)$",
        re.MULTILINE,
    )
    found = [match.groups() for path in texts for match in command.finditer(path.read_text())]
    return [pytest.param(tool, rest, id=f"{tool} {rest}") for tool, rest in dict.fromkeys(found)]


@pytest.mark.parametrize(("tool", "rest"), tool_commands())
def test_tool_understands_the_command(tool, rest):
    parser = getattr(arguments, f"{tool}_parser")()
    parsed = parser.parse_args(shlex.split(rest, comments=True))
    assert tool in ("predict", "visualize") or (ROOT / parsed.config).exists()


def test_commands_are_found_in_readme_and_configs():
    tools = [param.values[0] for param in tool_commands()]
    assert {"train", "test", "predict", "visualize", "compare"} == set(tools)
    assert tools.count("train") > len(list((ROOT / "configs" / "classification").rglob("*_in1k.py")))


@every_document
def test_relative_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link.split("#")[0]).exists()] == []


def test_guide_names_every_order():
    table = (ROOT / "docs" / "scan_orders.md").read_text().split("## One of your own")[0]
    assert [name for name in order_names() if f"`{name}`" not in table] == []


def test_readme_tree_is_the_tree():
    section = (ROOT / "README.md").read_text().split("## The tree")[1].split("\n## ")[0]
    listed = re.findall(r"^    ([\w/]+)/ ", section, re.MULTILINE)
    assert [folder for folder in listed if not (ROOT / folder).is_dir()] == []
    packages = {f"vssm/{path.parent.name}" for path in ROOT.glob("vssm/*/__init__.py")}
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))} & tracked_folders()
    unlisted = [folder for folder in packages | top if not any(name.startswith(folder) for name in listed)]
    assert unlisted == []


def tracked_folders() -> set[str]:
    """The folders that belong to the project: not environments, builds, downloads or results."""
    return {"kernels", "vssm", "configs", "tools", "model_cards", "tests"}


@pytest.fixture
def cards(monkeypatch):
    """What `make cards` runs."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("model_tables")


def test_what_is_written_from_the_declarations_is_up_to_date(cards, capsys):
    assert cards.main(["--check"]) == 0, capsys.readouterr().out


@pytest.fixture
def house(tmp_path):
    """A copy of all that `make cards` writes."""
    for folder in ("model_cards", "configs", "docs", "kernels"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.c", "*.py[co]")
        )
    (tmp_path / "tests" / "parity").mkdir(parents=True)
    for file in ("README.md", "NOTICE", *(f"tests/parity/{family}.yaml" for family in FAMILIES)):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_what_was_edited_by_hand_or_is_left_over_is_found_and_mended(cards, house, capsys):
    variant = next(iter(FAMILIES.values())).variants[0]
    name, card = variant.name, f"model_cards/{next(iter(FAMILIES))}.md"
    config = next(house.glob(f"configs/classification/*/{name}_in1k.py"))
    files = {"README.md", "NOTICE", "docs/zoo.md", card, config.relative_to(house).as_posix()}
    edit(house / "README.md", "| family | models", "| families | models")
    edit(house / "docs" / "zoo.md", f"| `{name}`", f"| `{name}`, ")
    edit(house / "NOTICE", "Official implementation: ", "Official: ")
    edit(house / card, "library_name: timm", "library_name: vssm")
    edit(config, "drop_path_rate=", "drop_path_rate=1")
    left_over = shutil.copy(config, config.with_name("no_such_model_in1k.py"))
    picture = house / "docs" / "orders" / "cross.png"
    picture.unlink()
    assert cards.main(["--check"], house) == 1
    told = capsys.readouterr().out
    assert all(file in told for file in (*files, left_over.name, "docs/orders/cross.png"))

    assert cards.main([], house) == 0 == cards.main(["--check"], house)
    assert all((house / file).read_text() == (ROOT / file).read_text() for file in files)
    assert picture.exists() and not left_over.exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("model_cards/results.yaml", "\nfamilies:\n", "\nfamilies:\n  nobody: {models: {}}\n", "no family 'nobody'"),
        ("configs/recipes.yaml", "models: [", "models: [nothing, ", "no model 'nothing'"),
        ("configs/recipes.yaml", "recipes: [", "recipes: [nothing, ", "no kind 'nothing'"),
        ("configs/recipes.yaml", "drop_path: 0", "drop_paht: 0", "no key 'drop_paht'; known: drop_path"),
        ("README.md", "table: families", "table: nothing", "unknown table"),
    ],
)
def test_what_is_not_declared_is_refused_in_a_sentence(cards, house, file, old, new, sentence):
    edit(house / file, old, new)
    with pytest.raises(ValueError, match=sentence):
        cards.main([], house)


def test_what_is_measured_of_the_zoo_stands_beside_what_is_published(cards, house):
    """A table of each run with its conditions, and a picture of all, drawn anew where it shows something else."""
    keys = ("model", "size", "batch", "dtype", "mode", "execution", "ms", "images_per_second", "peak_gib", "kernels")
    keys += ("kernels_per_block",)
    swin = ("swin_tiny_patch4_window7_224", 224, 128, "bfloat16", "infer", "CUDA graph", 22.0, 5749.0, 1.7, 486, None)
    first = [
        ("vim_tiny", 224, 128, "bfloat16", "infer", "eager", 64.0, 2000.0, 0.4, 256, 10.7),
        ("vim_tiny", 224, 128, "bfloat16", "infer", "CUDA graph", 8.0, 16000.0, 0.4, None, None),
        ("vim_tiny", 224, 1, "bfloat16", "infer", "eager", 31.5, 31.7, 0.1, 304, 12.7),
        swin,
    ]
    second = [("vmamba_tiny", 224, 128, "bfloat16", "train", "eager", 64.0, 1999.0, 8.4, 901, 60.0), swin]

    def measure(name: str, values: list) -> None:
        facts = dict.fromkeys(("device", "torch", "triton", "timm", "commit", "command"), name)
        write_csv(
            house / "docs" / "studies" / f"{name}.csv", [dict(zip(keys, each, strict=True)) for each in values], facts
        )

    picture = house / "docs" / "studies" / "zoo.png"
    for file in picture.parent.glob("zoo*"):  # the real ones
        file.unlink()
    measure("zoo_1", first)
    assert cards.main([], house) == 0
    drawn = picture.read_bytes()
    measure("zoo_2", second)
    assert cards.main([], house) == 0
    assert picture.read_bytes() == drawn  # the same points
    page = (house / "docs" / "zoo.md").read_text()
    assert "| `vim_tiny` | 76.1 | 2,000 | 16,000 |  |  | 31.5 |  | 0.40 |  | 256 | 11 |  |  |" in page
    assert "| `vmamba_tiny` | 82.6 |  |  | 1,999 |  |  |  |  | 8.4 |  |  | 901 | 60 |" in page
    assert page.count("`swin_tiny_patch4_window7_224` | 81.3 |  | 5,749 |  |") == 2
    assert "commit zoo_1:\n\n    zoo_1" in page and "commit zoo_2:\n\n    zoo_2" in page
    assert len(drawn) > 10_000 and "](studies/zoo.png)" in page
    measure("zoo_2", [(*swin[:7], 5000.0, *swin[8:])])
    assert cards.main(["--check"], house) == 1
    assert cards.main([], house) == 0 and picture.read_bytes() != drawn
    assert cards.main(["--check"], house) == 0


def test_numbers_are_typed_only_once():
    """Accuracies stand in results.yaml; outside the generated tables no document repeats one."""
    accuracies = {str(model["published"]["top1"]) for model in MODELS.values() if "top1" in model.get("published", {})}
    for document in DOCUMENTS:
        text = re.sub(r"<!-- table: .*?<!-- end of table -->", "", document.read_text(), flags=re.DOTALL)
        assert [number for number in accuracies if re.search(rf"\b{re.escape(number)}\b", text)] == [], document.name


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_card_has_the_front_matter_of_the_hub(family):
    front_matter = yaml.safe_load((ROOT / "model_cards" / f"{family.name}.md").read_text().split("---\n")[1])
    assert front_matter["library_name"] == "timm"
    assert front_matter["pipeline_tag"] == "image-classification"
    assert front_matter["license"] == family.license
    assert front_matter["datasets"] == [family.data.hub]


def test_every_parity_record_is_claimed_and_every_claim_has_its_record():
    folder = ROOT / "tests" / "parity"
    files = [yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")]
    claimed = sorted(name for file in files for name in file["records"])
    tests = [*folder.glob("*.yaml"), *(ROOT / "tests" / "kernels").glob("*.py")]
    text = "".join(file.read_text() for file in tests)
    recorded = {path.stem for path in folder.glob("*.json")}
    of_parts = {name for name in recorded - set(claimed) if name in text}  # of operators and mixers
    assert claimed == sorted(recorded - of_parts)
