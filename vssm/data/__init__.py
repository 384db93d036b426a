"""Images and labels: readers, the published augmentation recipes, and an embedded set that is drawn from a seed."""

from vssm.data.dataset import ImageDataset, ShapesDataset, StreamedImageDataset
from vssm.data.decode import BadImageError, DataError, read_rgb, to_rgb
from vssm.data.shapes import ensure_shapes
from vssm.data.silhouettes import KINDS
from vssm.data.transforms import AlbumentationsTransform, TimmTransform, build_transform

__all__ = [
    "KINDS",
    "AlbumentationsTransform",
    "BadImageError",
    "DataError",
    "ImageDataset",
    "ShapesDataset",
    "StreamedImageDataset",
    "TimmTransform",
    "build_transform",
    "ensure_shapes",
    "read_rgb",
    "to_rgb",
]
