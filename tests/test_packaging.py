"""The wheel holds every package and data file, and works from a directory elsewhere."""

import configparser
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each importable package, and where its files are: the repository has two source roots.
SOURCE_ROOTS = {"vssm": ROOT / "vssm", "vssm_kernels": ROOT / "kernels" / "vssm_kernels"}
BUILT = {".pyc", ".so"}
# What `import vssm` must do without: the extras `train` and `mm`.
OPTIONAL = ("mmengine", "mmcv", "mmdet", "mmseg", "albumentations", "cv2", "matplotlib", "tensorboard", "datasets")


def source_files() -> dict[str, Path]:
    """Every code and data file of both source roots, by its place in the wheel."""
    found = {}
    for name, folder in SOURCE_ROOTS.items():
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in BUILT:
                found[f"{name}/{path.relative_to(folder).as_posix()}"] = path
    return found


def run_elsewhere(code: str, folder: Path, elsewhere: Path) -> str:
    """The output of `code` in a new Python that works in `elsewhere` and finds packages in `folder` first."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources, so that no file of an earlier build slips in."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("vssm", "kernels"):
        shutil.copytree(ROOT / name, sources / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(sources)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel) -> Path:
    folder = wheel.parent / "unpacked"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_package_list_is_the_tree():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    in_tree = {str(Path(name).parent).replace("/", ".") for name in source_files() if name.endswith(".py")}
    assert sorted(listed) == sorted(in_tree), "setup.cfg, [options] packages, is not what the tree holds"


def test_every_package_has_an_init_file():
    files = source_files()
    folders = {str(Path(name).parent) for name in files if name.endswith(".py")}
    assert [folder for folder in sorted(folders) if f"{folder}/__init__.py" not in files] == []


def test_wheel_holds_every_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    missing = sorted(set(source_files()) - held)
    assert not missing, f"not in the wheel: {missing}; see packages and package_data in setup.cfg"


def test_wheel_holds_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == set(SOURCE_ROOTS)
    assert not [name for name in names if "tests/" in name or name.endswith((".pyc", ".so"))]


def test_wheel_carries_licence_and_notice(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names if ".dist-info/" in name}


def test_kernels_of_the_wheel_work_alone(unpacked, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(unpacked / "vssm_kernels", alone / "vssm_kernels")
    code = """
import sys, vssm_kernels
from vssm_kernels.testing import make_inputs
print(tuple(vssm_kernels.selective_scan(**make_inputs()).shape))
print([name for name in ("timm", "torchvision", "vssm") if name in sys.modules])
"""
    assert run_elsewhere(code, alone, tmp_path).splitlines() == ["(2, 63, 2, 24)", "[]"]


def test_models_work_from_a_directory_elsewhere_and_need_torch_and_timm_only(unpacked, tmp_path):
    """Without the optional packages, and without Triton, as CPU-only builds of torch come."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({(*OPTIONAL, "triton")}))  # any import of one now fails
import timm, torch, vssm, vssm.models, vssm.nn, vssm.ops, vssm.scan, vssm_kernels
print(vssm.__file__)
print(vssm_kernels.__file__)
print(timm.create_model("vim_tiny", num_classes=3).eval()(torch.zeros(1, 3, 224, 224)).shape)
print(vssm_kernels.backend_report())
"""
    vssm_file, kernels_file, shape, report = run_elsewhere(code, unpacked, tmp_path).splitlines()
    assert vssm_file == str(unpacked / "vssm" / "__init__.py")
    assert kernels_file == str(unpacked / "vssm_kernels" / "__init__.py")
    assert shape == "torch.Size([1, 3])"
    assert "triton" in report, "the report says nothing of the backend that is missing"


def test_mismatched_torchvision_is_named(unpacked, tmp_path):
    """A CPU-only torch beside the registry's torchvision fails inside torchvision with an unhelpful message."""
    broken = tmp_path / "torchvision.py"
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    import vssm
except ImportError as error:
    print(error)
"""
    said = run_elsewhere(code, unpacked, tmp_path)
    assert "torchvision does not fit the installed torch (operator torchvision::nms does not exist)" in said
    assert "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu" in said


def test_report_for_bug_reports(capsys, monkeypatch):
    """What python -m vssm prints."""
    monkeypatch.setattr(sys, "argv", ["vssm"])
    runpy.run_module("vssm", run_name="__main__")
    printed = capsys.readouterr().out
    names = [line.split("  ")[0] for line in printed.splitlines()]
    for name in (
        "vssm",
        "torch",
        "torchvision",
        "timm",
        "triton",
        "numpy",
        "mmengine",
        "python",
        "C compiler",
        "kernel cache",
    ):
        assert name in names, printed
    assert any(name.startswith("GPU") for name in names)
    from vssm_kernels import backend_report

    assert {f"{op}, {backend}" for op, backend, _ in backend_report()} <= set(names)


def test_report_says_what_is_absent(monkeypatch):
    import vssm.__main__ as command

    def absent(name):
        raise command.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(command.metadata, "version", absent)
    monkeypatch.setattr(command, "find_compiler", lambda: None)
    monkeypatch.setenv("VSSM_CACHE", "here")
    lines = dict(line.split("  ", 1) for line in command.report().splitlines())
    assert lines["mmengine"].strip() == "not installed"
    assert lines["C compiler"].strip() == "none found"
    assert lines["kernel cache"].strip().startswith("not used: VSSM_CACHE=here depends on the working directory")


def test_report_names_a_compiler_that_does_not_run(tmp_path, monkeypatch):
    import vssm.__main__ as command

    broken = tmp_path / "cc"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert f"{broken}, which does not run: [Errno" in command.report()
