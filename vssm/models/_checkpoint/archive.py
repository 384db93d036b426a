"""A look at a file of weights before it is unpacked: what it declares has to be what it holds.

torch allocates what a file declares: a compressed part of 6 MB unpacked to 6.9 GB, and a storage that is declared
larger than its part is read beyond the part's end. So the pickle in the file is read here first, by an unpickler that
builds nothing: it only notes storages and tensors.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from vssm.files import FileError, check_regular

# Tensors may share a storage (tied weights), so together they may declare more than the file holds, within reason.
MAX_SHARING = 8
# Reads of a pickle, at most two for each of its instructions. A checkpoint of 400 weights with AdamW has 60,000.
MAX_READS = 5_000_000
# Bytes of an element, by the names that files have for types.
_ITEMSIZES = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("BFloat16Storage", "HalfStorage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("ComplexFloatStorage", "DoubleStorage", "LongStorage"), 8),
    "ComplexDoubleStorage": 16,
}
_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
# Take a tensor that is rebuilt already; _WITH_ATTRIBUTES takes the function and arguments that rebuild it.
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"


def check_archive(path: str | Path) -> None:
    """Refuse a file of weights that would take more memory than its size says.

    Checks files of ``torch.save``, in today's zip format and in the one before torch 1.6; the reader of safetensors
    checks its own.

    Raises:
        FileError: no regular file; parts that are compressed, missing or shorter than declared; tensors that declare
            far more numbers than there are; constructors of anything but dense tensors.
        Exception: of any kind, where the file is damaged.
    """
    check_regular(path)
    path = Path(path)
    if is_safetensors(path):
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch tells the two formats apart
        file.seek(0)
        if zipped:
            _check_zip(file, size)
        else:
            _check_legacy(file, size)


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is one of safetensors, whatever its ending: a header in JSON behind its length of 8 bytes."""
    with Path(path).open("rb") as file:
        return file.read(9)[8:] == b"{"


def _check_zip(file: IO[bytes], size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries
        ):
            raise FileError("its parts are compressed, and might unpack to any size; expected a file of torch.save")
        parts = {entry.filename.lower(): entry.file_size for entry in entries}
        if len(parts) < len(entries) or sum(parts.values()) > size:
            raise FileError("its parts lie upon each other; expected a file of torch.save")
        root = entries[0].filename.partition("/")[0] if entries else ""
        outline = _Outline(lambda key: parts.get(f"{root}/data/{key}".lower(), -1))
        with archive.open(f"{root}/data.pkl") as data:
            outline.read_pickle(data)
    outline.check_total(size)


def _check_legacy(file: IO[bytes], size: int) -> None:
    outline = _Outline(lambda key: size)
    # A magic number, the version, the system, the object, and the keys of its storages; then the storages' bytes.
    with contextlib.suppress(EOFError):  # a plain pickle, which torch refuses
        for _ in range(5):
            outline.read_pickle(file)
    outline.check_total(size)


class _Outline:
    """Notes the storages and tensors that pickles declare.

    Args:
        held: bytes in the file of the storage with a key; negative where there is none.
    """

    def __init__(self, held: Callable[[str], int]) -> None:
        self.held = held
        self.storages: dict[str, int] = {}
        self.tensor_bytes = 0

    def read_pickle(self, file: IO[bytes]) -> None:
        """Read one pickle."""
        unpickler = _Unpickler(_Counted(file), encoding="latin1")
        unpickler.outline = self
        unpickler.load()

    def storage(self, saved_id: Any) -> _Storage | type[_Nothing]:
        if saved_id[0] == "module":  # a class with its source, in old files of whole models, which torch refuses
            return _Nothing
        kind, storage_type, key, _, numel = saved_id[:5]
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not _are_sizes([numel]):
            raise FileError("a storage in it is not declared as torch.save does")
        declared = numel * storage_type.itemsize
        if declared > self.held(key):
            raise FileError(f"a storage in it is declared with {declared:,} bytes, more than there are")
        self.storages[key] = max(declared, self.storages.get(key, 0))
        return _Storage(storage_type.itemsize)

    def tensor(self, storage: Any, offset: Any, size: Any, *_: Any) -> _Nothing:
        if not isinstance(storage, _Storage) or not _are_sizes(size):
            raise FileError("a tensor in it is not declared as torch.save does")
        self.tensor_bytes += math.prod(size) * storage.itemsize
        return _Nothing()

    def check_total(self, size: int) -> None:
        """Compare what is declared with the size of the file in bytes."""
        declared = max(sum(self.storages.values()), self.tensor_bytes // MAX_SHARING)
        if declared > size:
            raise FileError(
                f"its tensors are declared with {max(self.tensor_bytes, declared):,} bytes, and the file has {size:,}"
            )


def _are_sizes(numbers: Any) -> bool:
    """Whether these can be the sizes of a tensor: integers of 64 bits, as many as torch allows."""
    return len(numbers) <= 64 and all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers)


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, whose memo grows with what it holds only; it imports and calls nothing of the file."""

    outline: _Outline

    def persistent_load(self, saved_id: Any) -> _Storage | type[_Nothing]:
        return self.outline.storage(saved_id)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _TENSORS:
            return self.outline.tensor
        if module.partition(".")[0] == "torch" and name.endswith("Storage"):
            return _StorageType(name)
        if full == _WITH_ATTRIBUTES:
            return lambda function, kind, arguments, *_: function(*arguments)
        rebuilt = full.startswith(("torch._utils.", "torch._tensor.")) and full not in _PARAMETERS
        if rebuilt or name == "bytearray" or (module.startswith("torch") and name.endswith("Tensor")):
            return _refusal(full)
        return _Nothing


def _refusal(name: str) -> Callable[..., None]:
    """Stands for a constructor: it may be named, as the type of a tensor with attributes, but not called."""

    def refuse(*_: Any) -> None:
        raise FileError(f"it holds {name}; expected dense tensors and plain values")

    return refuse


class _StorageType:
    def __init__(self, name: str) -> None:
        if name not in _ITEMSIZES:
            raise FileError(f"it holds a torch.{name}; expected dense tensors and plain values")
        self.itemsize = _ITEMSIZES[name]


class _Storage:
    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize


class _Nothing:
    """Stands for any object of the file: takes any arguments, items and state, and keeps none."""

    def __new__(cls, *_: Any, **__: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> _Nothing:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    extend = add = update = append


class _Counted:
    """A file that can be read so many times."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.reads = 0

    def _count(self) -> None:
        self.reads += 1
        if self.reads > MAX_READS:
            raise FileError(f"it holds more than {MAX_READS // 2:,} objects beside its weights")

    def read(self, count: int) -> bytes:
        self._count()
        return self.file.read(count)

    def readline(self) -> bytes:
        self._count()
        return self.file.readline()
