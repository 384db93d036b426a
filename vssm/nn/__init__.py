"""The parts that families share, one file per kind: stems, downsampling, blocks, mixers, MLPs, gates, norms, scans."""

from vssm.nn.block import Block
from vssm.nn.compilation import compile_module
from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.downsample import ConvDownsample, PatchMerging
from vssm.nn.gate import ChannelGate
from vssm.nn.init import initialise_linear_layers
from vssm.nn.mixer import SS2D, GatedMixer, VimMixer
from vssm.nn.mlp import ConvMlp, LeanMlp
from vssm.nn.norm import BranchLayerNorm, BranchRMSNorm, StreamLayerNorm
from vssm.nn.order_table import OrderTable, concrete
from vssm.nn.recompute import recomputed
from vssm.nn.ssm import SelectiveScan
from vssm.nn.stem import ConvStem, PatchStem

__all__ = [
    "SS2D",
    "Block",
    "BranchLayerNorm",
    "BranchRMSNorm",
    "ChannelGate",
    "ChannelsLastConv2d",
    "ConvDownsample",
    "ConvMlp",
    "ConvStem",
    "GatedMixer",
    "LeanMlp",
    "OrderTable",
    "PatchMerging",
    "PatchStem",
    "SelectiveScan",
    "StreamLayerNorm",
    "VimMixer",
    "compile_module",
    "concrete",
    "initialise_linear_layers",
    "recomputed",
]
