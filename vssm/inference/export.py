"""Files of a model for other programs: written in operations of torch alone, and compared with the model before use."""

from __future__ import annotations

import importlib.util
import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vssm.errors import ConfigError, UserError
from vssm.files import replace_atomically, unfinished
from vssm.ops import standard_operations

# What runs a model or a file: its output, or the maps of one made with features_only.
Run = Callable[[Tensor], Tensor | Sequence[Tensor]]

# Relative to the largest number of an output. Runtimes sum in another order; float32 leaves about 1e-6 of that.
TOLERANCE = 1e-5
_TIMED_RUNS = 8


@dataclass(frozen=True)
class Export:
    """A file that was written, and what was found when it was run.

    Args:
        path: of the file.
        difference: the largest of an output to the model's, relative to the output's largest number.
        batch: number of images that it was timed with.
        milliseconds: of the file, on as many CPU threads as torch has.
        eager: milliseconds of the model.
    """

    path: Path
    difference: float
    batch: int
    milliseconds: float
    eager: float


@dataclass(frozen=True)
class Format:
    """A kind of file: write(model, images, path, dynamic_batch), and load(path), which returns what runs it."""

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Path, bool], None]
    load: Callable[[Path], Run]


def export(
    model: nn.Module, path: Path, form: str, size: tuple[int, int] = (224, 224), *, dynamic_batch: bool = False
) -> Export:
    """Write a model into a file that runs without vssm, and compare what it gives with what the model gives.

    The file is made for inference in float32 on a CPU, for one size of images: a scan order is a table of that size. It
    is written under a temporary name and put in its place when it was found right.

    Args:
        model: a backbone of this library or another of timm, with `features_only` too; not changed but for `eval`.
        path: of the file.
        form: one of `FORMATS`.
        size: height and width of the images.
        dynamic_batch: whether the file takes any number of images; else one at a time.

    Raises:
        ConfigError: no such format, a package that it needs is not installed, no such folder, or a model in another
            precision or on another device.
        UserError: the file gives other outputs than the model; it is not kept.

    >>> import tempfile, timm, vssm
    >>> file = Path(tempfile.mkdtemp()) / "vim.pt"
    >>> made = export(timm.create_model("vim_tiny", depth=1), file, "torchscript", (32, 32))
    >>> made.difference < 1e-5, torch.jit.load(file)(torch.zeros(1, 3, 32, 32)).shape
    (True, torch.Size([1, 1000]))
    """
    kind = FORMATS.get(form)
    if kind is None:
        raise ConfigError(f"format {form!r}: expected one of {', '.join(FORMATS)}")
    model, path = getattr(model, "_orig_mod", model), Path(path)  # of torch.compile
    _check_size(size)
    channels = _check_weights(model)
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
    missing = [package for package in kind.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f'--format {form} needs {" and ".join(missing)}: pip install "vssm[export]"')
    model = model.eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 if dynamic_batch else 1, channels, *size, generator=generator)
    temporary = unfinished(path).with_suffix(kind.suffix)
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")  # of torch's own exporters, about themselves
            kind.write(model, images, temporary, dynamic_batch)
            run = kind.load(temporary)
            # Another number of images than the file was made with, where it takes any.
            tried = torch.cat([images, images.flip(3)])[:3] if dynamic_batch else images
            difference = _difference(run(tried), model(tried))
            if not difference <= TOLERANCE:
                raise UserError(
                    f"the {form} file gives other outputs than the model, by {difference:.1e} of the largest: not kept"
                )
            made = Export(path, difference, len(images), _milliseconds(run, images), _milliseconds(model, images))
        replace_atomically(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return made


def _check_size(size: tuple[int, int]) -> None:
    try:
        height, width = size
        fits = height >= 1 and width >= 1
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(f"size is {size!r}; expected the height and the width of an image in pixels")


def _check_weights(model: nn.Module) -> int:
    """The number of channels of its images."""
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(
                f"a file is made on a CPU in float32, and {name} is {dtype} on {tensor.device}: export "
                "copy.deepcopy(model).float().cpu()"
            )
    stem = next((parameter for parameter in model.parameters() if parameter.dim() == 4), None)
    if stem is None:
        raise ConfigError(f"{type(model).__name__} has no convolution; expected a model of images")
    return stem.shape[1]


def _tensors(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def _difference(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """The largest of any output, relative to that output's largest number; NaN or infinite where one has no number, or
    another shape."""
    pairs = list(zip(_tensors(found), _tensors(expected), strict=True))
    if any(own.shape != wanted.shape for own, wanted in pairs):
        return math.inf
    parts = [(own - wanted).abs().max() / wanted.abs().max() for own, wanted in pairs]
    return torch.stack(parts).max().item()  # Python's max passes over a NaN that is not the first


def _milliseconds(run: Run, images: Tensor) -> float:
    """The shortest of a few runs; on one thread of the time that the process had, which others cannot lengthen."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(_TIMED_RUNS):
        start = clock()
        run(images)
        times.append(clock() - start)
    return 1000 * min(times)


def _exported(model: nn.Module, images: Tensor, dynamic_batch: bool) -> torch.export.ExportedProgram:
    with standard_operations():
        return torch.export.export(model, (images,), dynamic_shapes=_shapes(dynamic_batch))


def _shapes(dynamic_batch: bool) -> tuple[dict[int, torch.export.Dim], ...] | None:
    return ({0: torch.export.Dim("batch")},) if dynamic_batch else None


def _write_onnx(model: nn.Module, images: Tensor, path: Path, dynamic_batch: bool) -> None:
    outputs = model(images)
    names = ["logits"] if isinstance(outputs, Tensor) else [f"map{number}" for number in range(len(outputs))]
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=["images"],
        output_names=names,
        dynamic_shapes=_shapes(dynamic_batch),
        dynamo=True,
        verbose=False,
        external_data=False,
    )


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]


class _OfOneSize(nn.Module):
    """A model whose trace refuses images of another size: what is read along a scan order would be wrong."""

    def __init__(self, model: nn.Module, images: Tensor):
        super().__init__()
        self.model, self.sizes = model, images.shape[1:]

    def forward(self, images: Tensor) -> Tensor | Sequence[Tensor]:
        for dim, size in enumerate(self.sizes, 1):
            images = images.unflatten(dim, (size,))
        return self.model(images)


def _write_torchscript(model: nn.Module, images: Tensor, path: Path, dynamic_batch: bool) -> None:
    with standard_operations():
        traced = torch.jit.trace(_OfOneSize(model, images).eval(), images, strict=False)  # maps are a list
    torch.jit.save(torch.jit.freeze(traced), path)


def _write_exported(model: nn.Module, images: Tensor, path: Path, dynamic_batch: bool) -> None:
    logging.getLogger("torch._export.serde.serialize").setLevel(logging.ERROR)  # a warning for each empty list
    torch.export.save(_exported(model, images, dynamic_batch), path)


def _write_aoti(model: nn.Module, images: Tensor, path: Path, dynamic_batch: bool) -> None:
    torch._inductor.aoti_compile_and_package(_exported(model, images, dynamic_batch), package_path=str(path))


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "torchscript": Format(".pt", (), _write_torchscript, torch.jit.load),
    "exported": Format(".pt2", (), _write_exported, lambda path: torch.export.load(path).module()),
    "aoti": Format(".aoti.pt2", (), _write_aoti, lambda path: torch._inductor.aoti_load_package(str(path))),
}
