"""U-shaped segmentors: agreement with the official MHS-VM, VM-UNet's layout, any pyramid, errors."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from vssm.errors import ConfigError

pytest.importorskip("mmseg")
sys.path.insert(0, str(Path(__file__).parents[2] / "models"))

from families import CLASSES  # noqa: E402
from records import RECORDS, assert_trace, image  # noqa: E402

from vssm.mm.tasks.u_shape import official_layout  # noqa: E402
from vssm.mm.tasks.weights import load_weights  # noqa: E402
from vssm.models import FAMILIES, Pyramid  # noqa: E402

SEGMENTORS = [name for name, record in RECORDS.items() if record.segmentor]
SMALL = {"dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1)}


def build(backbone: dict, channels: list[int], **head: object) -> nn.Module:
    """A segmentor with one level for each of the channels."""
    config = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor"},
        "backbone": {"type": "VSSMBackbone", **backbone},
        "decode_head": {"type": "UShapedHead", "num_classes": 2, "in_channels": channels, **head},
        "test_cfg": {"mode": "whole"},
    }
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(config)


def official_network(model: str, depths: tuple[int, ...] = (2, 2, 2, 1), **sizes: object) -> nn.Module:
    """A segmentor that is an official U-shaped network: one output, that of a sigmoid."""
    dims = sizes.get("dims", (96, 192, 384, 768))
    return build(
        {"name": model, "entries": True, "output_norm": False, **sizes},
        [*dims[1:], dims[-1]],
        in_index=(1, 2, 3, 4),
        depths=depths,
        blocks={"name": model},
        out_channels=1,
        threshold=0.5,
    ).eval()


def written(model: nn.Module) -> dict[str, Tensor]:
    return official_layout(model.backbone.model.renaming).write(model.state_dict())


@pytest.mark.parametrize("name", SEGMENTORS)
def test_gives_what_the_official_network_gave(name: str, tmp_path: Path) -> None:
    """Every trace of encoder and decoder at every recorded size, from the official file, which comes back whole."""
    record = RECORDS[name]
    model = official_network(record.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == record.content["params"]
    weights = record.official_weights()
    torch.save(weights, tmp_path / "best.pth")
    load_weights(model, tmp_path / "best.pth")
    found = written(model)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())

    outputs: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, path=path: outputs.update({path: output}))
    for case in record.cases:
        with torch.inference_mode():
            model(image(case), mode="tensor")
        for trace in case["features"]:
            if (path := record.where(trace["name"])) is not None:
                assert_trace(outputs[path], trace, record.tolerance)
