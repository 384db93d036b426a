"""The costs of a detector or segmentor: parameters, operations and time per image."""

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from vssm.bench.flops import Flops, count_flops
from vssm.bench.timing import median_time, peak_memory

# Numbers of proposals and of masks that are counted for two-stage detectors, as in mmdetection.
BOX_REGIONS, MASK_REGIONS = 1000, 100
# Height and width of the image for which papers count.
SIZES = {"mmdet": (800, 1280), "mmseg": (512, 2048)}


def benchmark_config(
    config: Config,
    size: tuple[int, int],
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float = 2.0,
) -> list[dict[str, object]]:
    """Two rows of results: for the backbone, and for the whole model up to boxes, masks or a class map.

    Args:
        config: of a detector or segmentor; weights are initial ones.
        size: height and width of the images, in pixels.
        batch: images at once.
        device: for timing; operations are counted on the meta device.
        dtype: float32, or a half precision under autocast.
        seconds: how long to time each of the two; at least five batches.
    """
    backbone_flops, flops = model_flops(build_model(config, "meta"), *size)
    torch.manual_seed(0)
    model = build_model(config, device)
    images = [torch.randn(batch, 3, *size, device=device) for _ in range(2)]
    samples = data_samples(config, size, batch)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def row(part: str, module: nn.Module, counted: Flops, *arguments: object) -> dict[str, object]:
        def run(image: Tensor) -> None:
            with torch.no_grad(), autocast:
                module(image, *arguments)

        functions = [lambda image=image: run(image) for image in images]
        median = median_time(functions, device, seconds)
        return {
            "part": part,
            "size": f"{size[0]}x{size[1]}",
            "batch": batch,
            "dtype": str(dtype).removeprefix("torch."),
            "parameters_m": sum(parameter.numel() for parameter in module.parameters()) / 1e6,
            "gflops": counted.total / 1e9,
            "ms": 1e3 * median,
            "images_per_second": batch / median,
            "peak_gib": peak_memory(functions[0], device),
        }

    return [row("backbone", model.backbone, backbone_flops), row("whole", model, flops, samples, "predict")]


def build_model(config: Config, device: torch.device | str) -> nn.Module:
    """Build the model of a config for evaluation in one process, with initial weights."""
    init_default_scope(config.default_scope)
    with torch.device(device):
        return revert_sync_batchnorm(MODELS.build(config.model)).eval()


def data_samples(config: Config, size: tuple[int, int], batch: int) -> list[DetDataSample | SegDataSample]:
    """The data samples of images that were neither resized nor padded."""
    sample = DetDataSample if config.default_scope == "mmdet" else SegDataSample
    shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    return [sample(metainfo={**shapes, "scale_factor": (1.0, 1.0)}) for _ in range(batch)]


def model_flops(model: nn.Module, height: int, width: int) -> tuple[Flops, Flops]:
    """Count the operations of the backbone, and of the whole model, on one image.

    Args:
        model: on the meta device, of `build_model`.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    image = torch.empty(1, 3, height, width, device="meta")
    return count_flops(lambda: model.backbone(image)), count_flops(lambda: compute(model, image))


def compute(model: nn.Module, image: Tensor) -> None:
    """Compute on an image all that does not depend on values: fixed numbers of regions, no selection of boxes."""
    if not hasattr(model, "roi_head"):
        model(image, mode="tensor")
        return
    model.rpn_head(model.extract_feat(image))
    head = model.roi_head
    _compute_regions(head.bbox_head, head.bbox_roi_extractor, BOX_REGIONS, image)
    if head.with_mask:
        _compute_regions(head.mask_head, head.mask_roi_extractor, MASK_REGIONS, image)


def _compute_regions(heads: nn.Module, extractors: nn.Module, count: int, image: Tensor) -> None:
    """Run the heads of all cascade stages, or the only head, on maps of regions."""
    for head, extractor in zip(_stages(heads), _stages(extractors), strict=True):
        head(image.new_empty(count, extractor.out_channels, *extractor.roi_layers[0].output_size))


def _stages(part: nn.Module) -> list[nn.Module]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]
