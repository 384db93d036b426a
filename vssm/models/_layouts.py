"""Parts of official layouts that several families share: rows for their `Renaming`."""

from vssm.models._checkpoint import Renaming, under

# The parameters of a scan in VMamba's code: directions and channels in one dimension; here: apart.
S6_ROWS = (
    ("x_proj_weight", "x_proj"),
    ("dt_projs_weight", "dt_proj"),
    ("dt_projs_bias", "dt_bias"),
    ("A_logs", "A_log", ((0, 1), 2)),
    ("Ds", "D", ((0, 1),)),
)
# Its mixer.
SS2D_ROWS = (
    *((theirs, f"scan.{ours}", *dims) for theirs, ours, *dims in S6_ROWS),
    ("conv2d", "conv"),
    ("out_norm", "norm"),
)

# In Mamba's code the scan of a mixer with one direction, or with one set of parameters for all of them; and the mixer.
MAMBA_SCAN_ROWS = (
    ("A_log", "scan.A_log", ((0, 1), 2)),
    ("D", "scan.D", ((0, 1),)),
    ("x_proj.weight", "scan.x_proj", ((0, 1), 2)),
    ("dt_proj.weight", "scan.dt_proj", ((0, 1), 2)),
    ("dt_proj.bias", "scan.dt_bias", ((0, 1),)),
)
MAMBA_ROWS = (
    *MAMBA_SCAN_ROWS,
    ("conv1d.weight", "conv_weight", ((0, 1), (), 2)),
    ("conv1d.bias", "conv_bias", ((0, 1),)),
)

# A block of VMamba's code.
BLOCK = ("layers.{i}.blocks.{j}", "stages.{i}.blocks.{j}")

_STAGES_AND_HEAD = Renaming(
    rows=(
        # The official downsampling ends a stage; here: it begins the next one, so that a stage ends in its map.
        ("layers.{i}.downsample", "stages.{i+1}.downsample"),
        BLOCK,
        ("classifier.norm", "norm"),
        ("classifier.head", "head.fc"),
    ),
    outputs=(("classifier.flatten", "head.global_pool"),),
)

# Pyramids of VMamba's code with a patch stem and patch merging, and with convolutions.
PATCH_PYRAMID = _STAGES_AND_HEAD + Renaming((("patch_embed.0", "stem.proj"), ("patch_embed.2", "stem.norm")))
CONV_PYRAMID = _STAGES_AND_HEAD + Renaming(
    (
        ("patch_embed.0", "stem.conv1"),
        ("patch_embed.2", "stem.norm1"),
        ("patch_embed.5", "stem.conv2"),
        ("patch_embed.7", "stem.norm2"),
        ("layers.{i}.downsample.1", "stages.{i+1}.downsample.conv"),
        ("layers.{i}.downsample.3", "stages.{i+1}.downsample.norm"),
    )
)

# Pyramids of the code of VSSD and Spatial-Mamba, which is that of MLLA (arXiv 2405.16605).
_CONV_NORM = (("conv", "conv"), ("norm", "bn"))
MLLA_PYRAMID = Renaming(
    rows=(
        *under("patch_embed.conv1", "stem.conv1", _CONV_NORM),
        *under("patch_embed.conv2.{k}", "stem.residual.{k}", _CONV_NORM),
        *under("patch_embed.conv3.0", "stem.widen", _CONV_NORM),
        *under("patch_embed.conv3.1", "stem.narrow", _CONV_NORM),
        ("layers.{i}.downsample.conv.0.conv", "stages.{i+1}.downsample.widen"),
        ("layers.{i}.downsample.conv.1.conv", "stages.{i+1}.downsample.depthwise"),
        *under("layers.{i}.downsample.conv.2", "stages.{i+1}.downsample.narrow", _CONV_NORM),
        BLOCK,
        *under(*BLOCK, [("cpe1", "position"), ("cpe2", "position2")]),
        ("head", "head.fc"),
    )
)


def in_mmpretrain(rows: tuple[tuple, ...]) -> Renaming:
    """The layout of a classifier of mmpretrain's: a backbone, which files also hold by itself, and a head beside it."""
    return Renaming(
        rows=(*((f"backbone.{row[0]}", *row[1:]) for row in rows), ("head.fc", "head")),
        older=tuple((row[0], f"backbone.{row[0]}") for row in rows),
    )
