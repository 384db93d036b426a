"""tools/visualize.py: draws scan orders, receptive fields and hidden attention."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vssm import inference
from vssm.data import ensure_shapes, read_rgb
from vssm.data.transforms import Transform
from vssm.errors import ConfigError, UserError
from vssm.files import check_outputs, file_stem, make_directory
from vssm.inference.predictor import model_arguments, published_transform
from vssm.models import CheckpointError
from vssm.scan import order_named, order_names
from vssm.viz import attention_maps, draw_attention, draw_order, draw_receptive_fields, receptive_field
from vssm.viz.attention import memory_needed, scan_input
from vssm.viz.style import picture_format

# Tokens of a picture of an order: a cell is 66 pixels wide while it is drawn, and two directions stand side by side.
LARGEST_SIDE, LARGEST_GRID = 128, 4096


def draw(arguments: argparse.Namespace) -> None:
    """Draw what the arguments of `visualize_parser` say."""
    commands = {"orders": draw_orders, "erf": draw_erf, "attention": draw_hidden_attention}
    try:
        commands[arguments.command](arguments)
    except CheckpointError:
        raise
    except ValueError as error:  # the library's errors say what to do; here the arguments are the user's
        raise UserError(str(error)) from error


def draw_orders(arguments: argparse.Namespace) -> None:
    height, width = arguments.grid
    if max(height, width) > LARGEST_SIDE or height * width > LARGEST_GRID:
        raise ConfigError(
            f"--grid {height} {width} is too large for a picture: expected at most {LARGEST_SIDE} tokens a side and "
            f"{LARGEST_GRID} in all"
        )
    files = {name: arguments.out / f"{file_stem(name)}.png" for name in arguments.names or order_names()}
    functions = {name: order_named(name) for name in files}
    make_directory(arguments.out, "--out")
    check_outputs(files.values(), "--out", arguments.overwrite)
    for name, file in files.items():
        order = functions[name](*arguments.grid)
        print(draw_order(order, *arguments.grid, title=name, path=file))


def draw_erf(arguments: argparse.Namespace) -> None:
    check_picture(arguments)
    models = load_models(arguments.model, arguments.checkpoint)
    files = embedded_images(arguments.data, arguments.images, models.transform)
    images = torch.stack([models.transform(read_rgb(str(file), str(file))) for file in files])
    fields = [("initial weights", receptive_field(models.initial, images))]
    if models.trained is not None:
        fields.append((f"trained: {arguments.checkpoint.name}", receptive_field(models.trained, images)))
    title = f"effective receptive field of {models.name}"
    print(draw_receptive_fields(fields, title, path=arguments.out))


def draw_hidden_attention(arguments: argparse.Namespace) -> None:
    check_picture(arguments)
    models = load_models(arguments.model, arguments.checkpoint)
    model = models.trained or models.initial
    file = arguments.image or embedded_images(arguments.data, 1, models.transform)[0]
    image = models.transform(read_rgb(str(file), str(file)))
    memory = memory_needed(scan_input(model, image, arguments.layer))
    name, token, maps = attention_maps(model, image, tuple(arguments.place), arguments.layer)
    title = f"hidden attention of {models.name}, {name}"
    print(draw_attention(visible(image), token, maps, title, path=arguments.out))
    print(f"largest tensor: {memory / 2**20:.1f} MiB")


def check_picture(arguments: argparse.Namespace) -> None:
    """Check where the picture goes, before a model is built."""
    picture_format(arguments.out)
    make_directory(arguments.out.parent, "--out")
    inputs = (arguments.checkpoint, getattr(arguments, "image", None))
    check_outputs([arguments.out], "--out", arguments.overwrite, inputs)


@dataclass(frozen=True)
class Models:
    """What is pictured.

    Args:
        name: of the timm model.
        initial: the model with initial weights.
        trained: with the checkpoint's weights; None without one.
        transform: from an RGB image to the models' input.
    """

    name: str
    initial: nn.Module
    trained: nn.Module | None
    transform: Transform


def load_models(name: str | None, checkpoint: Path | None) -> Models:
    """The named model, or the model of a checkpoint, with initial weights and with those of the checkpoint."""
    if checkpoint is None:
        arguments, trained, transform = model_arguments(None, name), None, None
    else:
        predictor = inference.load_predictor(name, checkpoint)
        arguments, trained, transform = predictor.arguments, predictor.model.cpu(), predictor.transform
    torch.manual_seed(0)
    initial = inference.create_model(**arguments)
    transform = transform or published_transform(initial)
    return Models(arguments["name"], initial, trained, transform)


def embedded_images(data: Path, count: int, transform: Transform) -> list[Path]:
    """Held-out images of the embedded set, in the model's input size."""
    if count < 1:
        raise ConfigError(f"--images is {count}; expected at least 1")
    side = transform(Image.new("RGB", (224, 224))).shape[-1]
    folder = ensure_shapes(data, train=10, val=max(count, 10), image_size=side)
    return sorted((folder / "val").rglob("*.*"), key=lambda file: file.stem)[:count]


def visible(image: torch.Tensor) -> Image.Image:
    """The model's input as an image, stretched to full contrast."""
    low, high = image.min(), image.max()
    pixels = (255 * (image - low) / (high - low).clamp(min=1e-6)).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
