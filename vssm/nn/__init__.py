"""What families share: state-space parameters and their initialisation, stems, downsampling, MLPs."""

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.downsample import ConvDownsample, PatchMerging
from vssm.nn.norm import BranchLayerNorm, BranchRMSNorm
from vssm.nn.order_table import OrderTable, concrete
from vssm.nn.ssm import SelectiveScan
from vssm.nn.stem import ConvStem, PatchStem

__all__ = [
    "BranchLayerNorm",
    "BranchRMSNorm",
    "ChannelsLastConv2d",
    "ConvDownsample",
    "ConvStem",
    "OrderTable",
    "PatchMerging",
    "PatchStem",
    "SelectiveScan",
    "concrete",
]
