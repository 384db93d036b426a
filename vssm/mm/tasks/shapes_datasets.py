"""The embedded set as data sets of mmdet and mmseg, on files that are drawn at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmengine.registry import DATASETS

from vssm.data import KINDS, ensure_shapes
from vssm.data.layouts import ADE20K, COCO

if TYPE_CHECKING:
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import BaseSegDataset

# Ten hues that also differ in brightness; the background of a class map is black.
PALETTE = [
    (230, 25, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (240, 50, 230),
    (70, 240, 240),
    (128, 0, 0),
    (60, 180, 75),
    (170, 255, 195),
    (145, 100, 255),
]


@DATASETS.register_module(name="ShapesDetectionDataset")
def shapes_for_detection(
    root: str,
    split: str,
    pipeline: list,
    train: int = 2000,
    val: int = 300,
    image_size: int = 96,
    seed: int = 0,
    test_mode: bool = False,
    filter_cfg: dict | None = None,
    indices: int | list[int] | None = None,
) -> CocoDataset:
    """mmdet's ``CocoDataset`` of the embedded set, with boxes and masks.

    Args:
        root: folder of embedded sets.
        split: "train" or "val".
        train, val, image_size, seed: of the set, see `vssm.data.ensure_shapes`.
        pipeline, test_mode, filter_cfg, indices: see mmengine's ``BaseDataset``.
    """
    from mmdet.datasets import CocoDataset

    folder = ensure_shapes(root, train=train, val=val, image_size=image_size, seed=seed, layout=COCO)
    return CocoDataset(
        data_root=str(folder),
        ann_file=f"annotations/instances_{split}.json",
        data_prefix={"img": f"{split}/"},
        metainfo={"classes": KINDS, "palette": PALETTE},
        pipeline=pipeline,
        test_mode=test_mode,
        filter_cfg=filter_cfg,
        indices=indices,
    )


@DATASETS.register_module(name="ShapesSegmentationDataset")
def shapes_for_segmentation(
    root: str,
    split: str,
    pipeline: list,
    train: int = 2000,
    val: int = 300,
    image_size: int = 96,
    seed: int = 0,
    reduce_zero_label: bool = False,
    test_mode: bool = False,
    indices: int | list[int] | None = None,
) -> BaseSegDataset:
    """mmseg's data set of the embedded set, laid out as ADE20K.

    Args:
        root: folder of embedded sets.
        split: "train" or "val".
        train, val, image_size, seed: of the set, see `vssm.data.ensure_shapes`.
        reduce_zero_label: ignore the background in loss and score, as in ADE20K, which leaves ten classes; otherwise
            the background is the first of eleven.
        pipeline, test_mode, indices: see mmengine's ``BaseDataset``.
    """
    from mmseg.datasets import BaseSegDataset

    folder = ensure_shapes(root, train=train, val=val, image_size=image_size, seed=seed, layout=ADE20K)
    part = {"train": "training", "val": "validation"}[split]
    classes, palette = ("background", *KINDS), [(0, 0, 0), *PALETTE]
    if reduce_zero_label:
        classes, palette = classes[1:], palette[1:]
    return BaseSegDataset(
        data_root=str(folder),
        data_prefix={"img_path": f"images/{part}", "seg_map_path": f"annotations/{part}"},
        metainfo={"classes": classes, "palette": palette},
        reduce_zero_label=reduce_zero_label,
        pipeline=pipeline,
        test_mode=test_mode,
        indices=indices,
    )
