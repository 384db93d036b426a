"""tools/export.py and tools/hub.py: write a model into files for other programs."""

import argparse
from pathlib import Path

import torch
from PIL import Image

from vssm.files import check_outputs, make_directory
from vssm.inference import create_model, load_predictor
from vssm.inference.export import FORMATS, export
from vssm.inference.hub import write_repository
from vssm.inference.predictor import published_transform


def run_export(arguments: argparse.Namespace) -> None:
    """Export as the arguments of `export_parser` say."""
    path = arguments.out or Path(arguments.model + FORMATS[arguments.format].suffix)
    make_directory(path.parent, "--out")
    check_outputs([path], "--out", arguments.overwrite, [arguments.checkpoint])
    if arguments.untrained:
        model = create_model(arguments.model)
        transform = published_transform(model)
    else:
        predictor = load_predictor(arguments.model, arguments.checkpoint, device="cpu")
        model, transform = predictor.model, predictor.transform
    height, width = arguments.size or transform(Image.new("RGB", (224, 224))).shape[-2:]
    made = export(model, path, arguments.format, (height, width), dynamic_batch=arguments.dynamic_batch)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, for images of {height} x {width} pixels, differs from the model "
        f"by {made.difference:.1e} of the largest output; {made.milliseconds:.0f} ms where the model takes "
        f"{made.eager:.0f} (batch {made.batch}, {torch.get_num_threads()} threads)"
    )


def run_hub(arguments: argparse.Namespace) -> None:
    """Write a repository as the arguments of `hub_parser` say."""
    make_directory(arguments.out.parent, "--out")
    predictor = load_predictor(arguments.model, arguments.checkpoint, device="cpu")
    write_repository(predictor, arguments.out, arguments.license)
    print(
        f"{arguments.out}: say in its README.md what the model was trained on, then upload it: "
        f"hf upload OWNER/{arguments.out.name} {arguments.out}"
    )
