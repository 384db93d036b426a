"""U-shaped segmentors: agreement with the official MHS-VM, VM-UNet's layout, any pyramid, errors."""

import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from families import CLASSES, ROOT, model_class
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image
from torch import Tensor, nn

from vssm.errors import ConfigError

pytest.importorskip("mmseg")
sys.path.insert(0, str(Path(__file__).parents[2] / "models"))

from records import RECORDS, assert_trace, image

from vssm.mm.runtime.config import load_config
from vssm.mm.tasks.data_check import prepare_dataset
from vssm.mm.tasks.reading import read_by_our_rules
from vssm.mm.tasks.u_shape import official_layout
from vssm.mm.tasks.weights import load_weights
from vssm.models import Pyramid

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


def official_network(model: str, **sizes: object) -> nn.Module:
    """A segmentor that is an official U-shaped network: one output, that of a sigmoid."""
    dims = sizes.get("dims", (96, 192, 384, 768))
    return build(
        {"name": model, "entries": True, "output_norm": False, **sizes},
        [*dims[1:], dims[-1]],
        in_index=(1, 2, 3, 4),
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
            for path in filter(None, record.where(trace["name"])):
                assert_trace(outputs[path], trace, record.tolerance)


def test_vm_unet_is_the_first_vmamba_under_the_head() -> None:
    """Its file has the names that the first VMamba's has, encoder and decoder alike, and 27.43 M parameters."""
    with torch.device("meta"):
        model = official_network("vanilla_vmamba_tiny", depths=(2, 2, 2, 2))
    assert sum(parameter.numel() for parameter in model.parameters()) == 27_427_561  # arXiv 2402.02491: 27.43 M
    layout = official_layout(model.backbone.model.renaming)
    names = [
        "vmunet.patch_embed.proj.weight",
        "vmunet.layers.0.blocks.1.ln_1.weight",
        "vmunet.layers_up.1.upsample.expand.weight",
        "vmunet.layers_up.3.blocks.0.self_attention.A_logs",
        "vmunet.final_conv.bias",
    ]
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    values = {name: torch.zeros(1, device="meta") for name in names}
    assert set(layout.read(values, shapes)) == {
        "backbone.model.stem.proj.weight",
        "backbone.model.stages.0.blocks.1.norm.weight",
        "decode_head.levels.1.upsample.expand.weight",
        "decode_head.levels.3.blocks.0.mixer.scan.A_log",
        "decode_head.conv_seg.bias",
    }


def takes_lists(name: str) -> bool:
    """Whether blocks of another number of stages need more than other `dims` and `depths`, or have windows."""
    return not {"heads", "mlp_ratios", "scan_orders", "scanned_stages", "windows"}.isdisjoint(
        signature(model_class(name)).parameters
    )


PYRAMIDS = [
    pytest.param(name, arguments, mirrored, id=f"{name}-{'its' if mirrored else 'plain'}-blocks")
    for name, arguments in CLASSES
    if issubclass(model_class(name), Pyramid)
    for mirrored in ((False,) if takes_lists(name) else (True, False))
]


@pytest.mark.parametrize(("name", "arguments", "mirrored"), PYRAMIDS)
def test_takes_any_pyramid_at_any_size(name: str, arguments: dict, mirrored: bool) -> None:
    """Class maps have the image's size, and every parameter learns."""
    torch.manual_seed(0)
    backbone = {"name": name, **arguments}
    channels = MODELS.build({"type": "VSSMBackbone", **backbone}).channels
    levels = len(channels) + 1
    blocks = {key: value for key, value in backbone.items() if key not in ("dims", "depths")} if mirrored else None
    model = build(
        backbone,
        [*channels, channels[-1]],
        in_index=[*range(levels - 1), levels - 2],
        depths=[1] * levels,
        stride=4,
        blocks=blocks,
    )
    out = model.decode_head(model.backbone(torch.randn(2, 3, 72, 100)))
    assert out.shape[:2] == (2, 2) and out.shape[2] >= 72 and out.shape[3] >= 100
    out.logsumexp(1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.decode_head.parameters())


def test_channels_that_do_not_fit_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"in_channels are \[8, 16\] and depths \[1, 1\]; expected as many, the last two"
    ):
        build({"name": "vmamba_tiny", **SMALL}, [8, 16], depths=[1, 1])
    with pytest.raises(ConfigError, match=r"model 'vim_tiny': .*unexpected keyword argument 'dims'"):
        build({"name": "vmamba_tiny", **SMALL}, [8, 8], depths=[1, 1], blocks={"name": "vim_tiny"})
    with pytest.raises(
        ConfigError, match="'mambavision_tiny', which work inside windows; expected some for whole maps"
    ):
        build({"name": "vmamba_tiny", **SMALL}, [8, 8], depths=[1, 1], blocks={"name": "mambavision_tiny"})
    with pytest.raises(ConfigError, match="entries=True is for pyramids of this library, with output_norm=False"):
        MODELS.build({"type": "VSSMBackbone", "name": "vmamba_tiny", "entries": True, **SMALL})


def write_masks(root: Path, mode: str) -> None:
    """Two images and their masks for training and validation each; a palette, bits, or values of 0 and 255."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (48, 40, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.jpg")
            mask = Image.fromarray((pixels[..., 0] > 128).astype(np.uint8) * (1 if mode == "P" else 255))
            if mode == "P":
                mask.putpalette([0, 0, 0, 255, 0, 0])
            (mask.convert("1") if mode == "1" else mask).save(root / "masks" / split / f"{i}.png")


def test_the_config_for_a_folder_steps_and_predicts(tmp_path: Path) -> None:
    """On masks of every mode: bits, values of 0 and 255, a palette."""
    config = load_config(ROOT / "configs/segmentation/mhs_vm/u_shape_mhs_vm_4h_masks.py")
    config.model.backbone.update(dims=(8, 16), depths=(1, 1), out_indices=(0, 1))
    config.model.decode_head.update(in_index=(1, 2), in_channels=[16, 16], depths=(1, 1))
    samples = []
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        for mode in ("1", "L", "P"):
            write_masks(tmp_path / mode, mode)
            meta = {"classes": ("background", "lesion")} | ({"pixel_values": (0, 255)} if mode == "L" else {})
            for loader in (config.train_dataloader, config.val_dataloader):
                steps = [{**step, "scale": (64, 64)} if "scale" in step else step for step in loader.dataset.pipeline]
                data = {**loader.dataset, "data_root": str(tmp_path / mode), "metainfo": meta, "pipeline": steps}
                dataset = DATASETS.build(prepare_dataset(data))
                read_by_our_rules(dataset)
                samples.append(dataset[0])
        train, val = samples[::2], samples[1::2]
        for sample in val:
            assert sample["data_samples"].gt_sem_seg.data.unique().tolist() == [0, 1]
        model = MODELS.build(config.model)
        model.init_weights()
        log = model.train().train_step(pseudo_collate(train), build_optim_wrapper(model, config.optim_wrapper))
        assert torch.isfinite(log["loss"]) and {"decode.loss_ce", "decode.loss_dice"} <= set(log)
        (first, *_) = model.eval().test_step(pseudo_collate(val))
    assert first.pred_sem_seg.data.shape == (1, 48, 40)
