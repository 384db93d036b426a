"""The parts that families share, one file per kind: stems, downsampling, blocks, mixers, MLPs, gates, norms, scans."""

from vssm.nn.attention import Attention, LatentPooling
from vssm.nn.block import Block, Blocks, drop_path_rates
from vssm.nn.compilation import compile_module, run_fast
from vssm.nn.conv import ChannelsLastConv2d, ConvNormAct, convolved_silu
from vssm.nn.deform import DeformableSampling
from vssm.nn.downsample import ConvDownsample, InvertedDownsample, PatchMerging
from vssm.nn.gate import ChannelGate
from vssm.nn.graphs import graph_module
from vssm.nn.init import initialise_linear_layers
from vssm.nn.linear import GroupLinear, Linear
from vssm.nn.mixer import SS2D, GatedMixer, VimMixer
from vssm.nn.mlp import ConvMlp, LeanMlp
from vssm.nn.norm import BranchLayerNorm, BranchRMSNorm, GroupLayerNorm, StreamLayerNorm
from vssm.nn.order_table import OrderTable, concrete
from vssm.nn.position import (
    ConditionalPosition,
    RotaryPosition,
    insert_class_row,
    resize_position,
    split_class_row,
)
from vssm.nn.recompute import product_of_recomputed
from vssm.nn.ssd import SSD, HydraMixer, NoncausalSSD
from vssm.nn.ssm import SelectiveScan, TwiceBiasedScan
from vssm.nn.stem import BatchNormStem, ConvStem, PaddedPatchConv, PatchStem, ResidualStem
from vssm.nn.tree import TreeMixer
from vssm.nn.upsample import PatchExpanding
from vssm.nn.wavefront import WavefrontMixer, WavefrontScan
from vssm.nn.windows import cut_windows, stitch_windows

__all__ = [
    "SS2D",
    "SSD",
    "Attention",
    "BatchNormStem",
    "Block",
    "Blocks",
    "BranchLayerNorm",
    "BranchRMSNorm",
    "ChannelGate",
    "ChannelsLastConv2d",
    "ConditionalPosition",
    "ConvDownsample",
    "ConvMlp",
    "ConvNormAct",
    "ConvStem",
    "DeformableSampling",
    "GatedMixer",
    "GroupLayerNorm",
    "GroupLinear",
    "HydraMixer",
    "InvertedDownsample",
    "LatentPooling",
    "LeanMlp",
    "Linear",
    "NoncausalSSD",
    "OrderTable",
    "PaddedPatchConv",
    "PatchExpanding",
    "PatchMerging",
    "PatchStem",
    "ResidualStem",
    "RotaryPosition",
    "SelectiveScan",
    "StreamLayerNorm",
    "TreeMixer",
    "TwiceBiasedScan",
    "VimMixer",
    "WavefrontMixer",
    "WavefrontScan",
    "compile_module",
    "concrete",
    "convolved_silu",
    "cut_windows",
    "drop_path_rates",
    "graph_module",
    "initialise_linear_layers",
    "insert_class_row",
    "product_of_recomputed",
    "resize_position",
    "run_fast",
    "split_class_row",
    "stitch_windows",
]
