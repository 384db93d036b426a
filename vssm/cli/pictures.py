"""tools/visualize.py: draws scan orders, receptive fields and hidden attention."""

import argparse
import re
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from vssm import inference
from vssm.data import ensure_shapes, read_rgb
from vssm.data.transforms import Transform
from vssm.errors import ConfigError, UserError
from vssm.files import make_directory
from vssm.inference.description import describe
from vssm.inference.predictor import model_arguments
from vssm.models import CheckpointError
from vssm.scan import order_named, order_names
from vssm.viz import attention_maps, draw_attention, draw_order, draw_receptive_fields, receptive_field
from vssm.viz.attention import memory_needed, scan_input


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
    make_directory(arguments.out, "--out")
    for name in arguments.names or order_names():
        order = order_named(name)(*arguments.grid)
        file = arguments.out / f"{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.png"
        print(draw_order(order, *arguments.grid, title=name, path=file))


def draw_erf(arguments: argparse.Namespace) -> None:
    make_directory(arguments.out.parent, "--out")
    initial, trained, transform = load_models(arguments)
    files = embedded_images(arguments.data, arguments.images, transform)
    images = torch.stack([transform(read_rgb(str(file), str(file))) for file in files])
    fields = [("weights as they start", receptive_field(initial, images))]
    if trained is not None:
        fields.append((f"trained: {arguments.checkpoint.name}", receptive_field(trained, images)))
    title = f"effective receptive field of {model_name(arguments)}"
    print(draw_receptive_fields(fields, title, path=arguments.out))


def draw_hidden_attention(arguments: argparse.Namespace) -> None:
    make_directory(arguments.out.parent, "--out")
    initial, trained, transform = load_models(arguments)
    model = trained or initial
    file = arguments.image or embedded_images(arguments.data, 1, transform)[0]
    image = transform(read_rgb(str(file), str(file)))
    memory = memory_needed(scan_input(model, image, arguments.layer))
    name, token, maps = attention_maps(model, image, tuple(arguments.place), arguments.layer)
    title = f"hidden attention of {model_name(arguments)}, {name}"
    print(draw_attention(visible(image), token, maps, title, path=arguments.out))
    print(f"largest tensor: {memory / 2**20:.1f} MiB")


def load_models(arguments: argparse.Namespace) -> tuple[nn.Module, nn.Module | None, Transform]:
    """The model with initial weights, with the checkpoint's weights (None without one), and its transform."""
    torch.manual_seed(0)
    initial = inference.create_model(**arguments_of_model(arguments))
    if arguments.checkpoint is None:
        return initial, None, create_transform(**resolve_data_config({}, model=initial))
    predictor = inference.load_predictor(arguments.model, arguments.checkpoint)
    return initial, predictor.model.cpu(), predictor.transform


def arguments_of_model(arguments: argparse.Namespace) -> dict:
    """Arguments of `vssm.inference.create_model`: those of the checkpoint, or the named model."""
    saved = inference.read_checkpoint(arguments.checkpoint) if arguments.checkpoint else {}
    described = describe(saved, arguments.checkpoint) if inference.is_training(saved) else None
    return model_arguments(described, arguments.model)


def model_name(arguments: argparse.Namespace) -> str:
    return arguments_of_model(arguments)["model_name"]


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
