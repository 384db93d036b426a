"""Files of weights are looked at before they are unpacked: bombs are refused at once."""

import os
import pickle
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vssm.models import CheckpointError, read_file
from vssm.models._checkpoint import archive

RUNS_AT_MOST = 5.0  # seconds of computing; unpacked, the files here take minutes or all memory


class Stored:
    """A storage of float32, as torch.save declares one."""

    def __init__(self, key: object = "0", numel: object = 4) -> None:
        self.key, self.numel = key, numel


class Rebuilt:
    """Something that a file lets a function of torch build."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple:
        return self.parts


def tensor(stored: object, *size: object) -> Rebuilt:
    return Rebuilt(torch._utils._rebuild_tensor_v2, stored, 0, size, (0,) * len(size), False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> tuple | None:
        return ("storage", torch.FloatStorage, value.key, "cpu", value.numel) if isinstance(value, Stored) else None


def write(path: Path, value: object, method: int = zipfile.ZIP_STORED, times: int = 1) -> None:
    """A file of torch.save that holds one storage of 16 bytes, and says what it likes of it."""
    with zipfile.ZipFile(path, "w", method) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, 2).dump(value)
        archive.writestr("archive/version", "3\n")
        for _ in range(times):
            archive.writestr("archive/data/0", bytes(16))


def refusal(path: Path) -> str:
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert time.process_time() - start < RUNS_AT_MOST
    told = str(caught.value)
    assert told.startswith(f"{path} was not loaded: ") and "\n" not in told and "weights_only" not in told
    return told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (tensor(Stored(numel=5), 5), "declared with 20 bytes, more than there are"),
        (tensor(Stored(numel=10**15), 10**15), "more than there are"),
        (tensor(Stored(key="1"), 4), "more than there are"),
        (tensor(Stored(key="../version"), 4), "more than there are"),
        (tensor(Stored(numel=-1), 1), "not declared as torch.save does"),
        (tensor(Stored(numel="4"), 4), "not declared as torch.save does"),
        (tensor(Stored(), 10**6, 10**6), "tensors are declared with 4,000,000,000,000 bytes"),
        ([tensor(Stored(), 10, 1000) for _ in range(100)], "tensors are declared with 4,000,000 bytes"),
        (tensor(Stored(), -1, -4), "not declared as torch.save does"),
        (tensor(Stored(), "4"), "not declared as torch.save does"),
        (tensor(Stored(numel=1 << 100_000), 4), "not declared as torch.save does"),
        (tensor(Stored(), *[1 << 60] * 100_000), "not declared as torch.save does"),
        (tensor([1.0] * 4, 4), "not declared as torch.save does"),
        (Rebuilt(
            torch._tensor._rebuild_from_type_v2, torch._utils._rebuild_tensor_v2, torch.nn.Parameter,
            (Stored(), 0, (10**6, 10**6), (0, 0), False, OrderedDict()), {},
         ), "tensors are declared with 4,000,000,000,000 bytes"),
        (Rebuilt(bytearray, 10**12), "bytearray; expected dense tensors"),
        (Rebuilt(torch.Tensor, 10**6, 10**6), "it holds torch.Tensor|it holds torch._tensor.Tensor"),
        (Rebuilt(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (9,), (1,), False), "torch._utils"),
    ],
    ids=range(17),
)  # fmt: skip
def test_declarations_that_do_not_hold(value: object, told: str, tmp_path: Path) -> None:
    write(tmp_path / "file.pth", {"weight": value})
    text = refusal(tmp_path / "file.pth")
    assert any(part in text for part in told.split("|")), text


def test_compressed_parts(tmp_path: Path) -> None:
    """Kilobytes that unpack to 64 megabytes."""
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        with archive.open("archive/data/0", "w") as file:
            for _ in range(4):
                file.write(bytes(2**24))
    assert "compressed" in refusal(tmp_path / "bomb.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_parts_upon_each_other(tmp_path: Path) -> None:
    write(tmp_path / "twice.pth", {"weight": tensor(Stored(), 4)}, times=2)
    assert "parts lie upon each other" in refusal(tmp_path / "twice.pth")


def test_the_format_before_torch_1_6(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    for numel, size in ((10**12 // 4, (10**12,)), (4, (10**6, 10**6 // 4))):
        with path.open("wb") as file:
            for value in (0x1950A86A20F9469CFC6C, 1001, {}):
                pickle.dump(value, file, 2)
            Pickler(file, 2).dump({"weight": tensor(Stored(numel=numel), *size)})
            pickle.dump(["0"], file, 2)
            file.write(bytes(24))
        told = refusal(path)
        assert "declared with 1,000,000,000,000 bytes" in told


def test_objects_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_READS", 10_000)
    write(tmp_path / "many.pth", [[] for _ in range(10_000)])
    assert "more than 5,000 objects" in refusal(tmp_path / "many.pth")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "weights.pth"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    assert f"it is a {kind.replace('pipe', 'named pipe')}; expected a regular file" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_good_files_are_read(zipped: bool, tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    (noted := torch.ones(2)).note = "an attribute"
    layer.bias.note = "an attribute"
    value = {
        "noted": [noted, layer.bias],
        "layer": layer.state_dict(),
        "tied": [layer.weight] * 5,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2),
        "half": torch.ones(3).bfloat16(),
        "part": torch.arange(10.0)[2:8:2],
        "expanded": torch.ones(1).expand(100),
        "plain": {"size": torch.Size([1]), "type": torch.int8, "numbers": {1, 2}, "bytes": b"x", "complex": 1j},
    }
    torch.save(value, tmp_path / "good.pth", _use_new_zipfile_serialization=zipped)
    read = read_file(tmp_path / "good.pth")
    assert read["plain"] == value["plain"] and torch.equal(read["layer"]["weight"], layer.weight)
    for name in ("empty", "scalar", "half", "part", "expanded"):
        assert torch.equal(read[name], value[name]), name
