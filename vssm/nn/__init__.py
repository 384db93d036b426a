"""What families share: state-space parameters and their initialisation, norms, stems, downsampling."""

from vssm.nn.compilation import compile_module
from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.downsample import ConvDownsample, PatchMerging
from vssm.nn.norm import BranchLayerNorm, BranchRMSNorm, StreamLayerNorm
from vssm.nn.order_table import OrderTable, concrete
from vssm.nn.recompute import LeanMlp, recomputed
from vssm.nn.ssm import SelectiveScan
from vssm.nn.stem import ConvStem, PatchStem

__all__ = [
    "BranchLayerNorm",
    "BranchRMSNorm",
    "ChannelsLastConv2d",
    "ConvDownsample",
    "ConvStem",
    "LeanMlp",
    "OrderTable",
    "PatchMerging",
    "PatchStem",
    "SelectiveScan",
    "StreamLayerNorm",
    "compile_module",
    "concrete",
    "recomputed",
]
