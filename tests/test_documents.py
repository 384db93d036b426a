"""The documents are true: their code runs, their commands, paths and links exist, their numbers are the models'."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import yaml

import vssm
from vssm.cli import arguments
from vssm.scan import order_names

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
for pattern in ("kernels/**/*.md", "model_cards/*.md", "docs/*.md"):
    DOCUMENTS += sorted(ROOT.glob(pattern))
RESULTS = yaml.safe_load((ROOT / "model_cards" / "results.yaml").read_text())

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
every_family = pytest.mark.parametrize("family", RESULTS["families"])


def model_entries() -> list:
    """(family, name, entry) of every model in results.yaml."""
    return [
        pytest.param(family, name, model, id=name)
        for family, entry in RESULTS["families"].items()
        for name, model in entry["models"].items()
    ]


def examples() -> list:
    """Every python block of every document, with the text block that follows it at once, its expected output."""
    block = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
    found = []
    for document in DOCUMENTS:
        name = document.relative_to(ROOT).as_posix()
        for number, match in enumerate(block.finditer(document.read_text()), 1):
            found.append(pytest.param(*match.groups(), id=f"{name}-{number}"))
    return found


@pytest.mark.parametrize(("code", "expected"), examples())
def test_example_runs_and_prints_what_it_says(code, expected, tmp_path):
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert expected is None or result.stdout == expected


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


def test_tables_are_up_to_date():
    command = [sys.executable, "tools/model_tables.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_check_finds_a_table_edited_by_hand(tmp_path):
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    (tmp_path / "tools").mkdir()
    script = shutil.copy(ROOT / "tools" / "model_tables.py", tmp_path / "tools")
    card = tmp_path / "model_cards" / "vim.md"
    card.write_text(card.read_text().replace("76.1", "86.1"))
    check = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout) == (
        1,
        "tables out of date in model_cards/vim.md; write them with: make cards\n",
    )
    subprocess.run([sys.executable, script], check=True, capture_output=True)
    assert card.read_text() == (ROOT / "model_cards" / "vim.md").read_text()


def test_numbers_are_typed_only_once():
    """Accuracies stand in results.yaml; outside the generated tables no document repeats one."""
    accuracies = {str(model.values[2]["published"]["top1"]) for model in model_entries()}
    for document in DOCUMENTS:
        text = re.sub(r"<!-- table: .*?<!-- end of table -->", "", document.read_text(), flags=re.DOTALL)
        assert [number for number in accuracies if re.search(rf"\b{re.escape(number)}\b", text)] == [], document.name


@every_family
def test_card_has_the_front_matter_of_the_hub(family):
    text = (ROOT / "model_cards" / f"{family}.md").read_text()
    front_matter = yaml.safe_load(text.split("---\n")[1])
    assert front_matter["library_name"] == "timm"
    assert front_matter["pipeline_tag"] == "image-classification"
    assert front_matter["license"] == RESULTS["families"][family]["license"]
    assert front_matter["datasets"] == ["imagenet-1k"]
    assert RESULTS["families"][family]["paper"] in text and RESULTS["families"][family]["repository"] in text


@every_family
def test_every_registered_model_has_its_numbers(family):
    entry = RESULTS["families"][family]
    assert sorted(timm.list_models(module=family)) == sorted([*entry["models"], *entry.get("aliases", {})])


@pytest.mark.parametrize(("family", "name", "entry"), model_entries())
def test_numbers_are_those_of_the_model(family, name, entry):
    model = timm.create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]
    assert model.pretrained_cfg["input_size"] == (3, entry["input"], entry["input"])
    # Where only a browser can open the folder of the weights, its address is a note.
    assert model.pretrained_cfg.get("url") == entry["weights"] or model.pretrained_cfg["notes"] == (entry["weights"],)
    assert model.pretrained_cfg["license"].lower() == RESULTS["families"][family]["license"]


@every_family
def test_aliases_are_the_models_they_name(family):
    for alias, name in RESULTS["families"][family].get("aliases", {}).items():
        shapes = [
            {key: tuple(tensor.shape) for key, tensor in timm.create_model(model, device="meta").state_dict().items()}
            for model in (alias, name)
        ]
        assert shapes[0] == shapes[1]
        assert timm.get_pretrained_cfg(alias).url == RESULTS["families"][family]["models"][name]["weights"]


def test_every_parity_record_is_claimed_and_every_claim_has_its_record():
    claimed = sorted(param.values[2]["parity"] for param in model_entries() if "parity" in param.values[2])
    assert claimed == sorted(path.stem for path in (ROOT / "tests" / "parity").glob("*.json"))


def test_official_repositories_are_named_with_their_commit_in_the_code():
    for family, entry in RESULTS["families"].items():
        source = Path(vssm.models.__file__).with_name(f"{family}.py").read_text()
        assert entry["repository"].removeprefix("https://github.com/") in source
        assert entry["commit"][:7] in source


@pytest.mark.parametrize(("family", "name", "entry"), model_entries())
def test_recipe_states_the_published_score(family, name, entry):
    config = ROOT / "configs" / "classification" / family / f"{name}_in1k.py"
    head = config.read_text().split("_base_ =")[0]
    assert f"Score: {entry['published']['top1']} % top-1" in head
    if "top5" in entry["published"]:
        assert f"{entry['published']['top5']} % top-5" in head
    assert f"tools/train.py {config.relative_to(ROOT)}" in head
