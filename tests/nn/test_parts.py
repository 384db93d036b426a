"""Every part of vssm.nn against a few plain lines of torch. A new part needs one row in PARTS."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import plain_torch as plain
import pytest
import torch
import torch.nn.functional as F
from timm.models import create_feature_extractor
from torch import Tensor, nn

import vssm.nn
from vssm.nn import (
    SS2D,
    SSD,
    Attention,
    BatchNormStem,
    Block,
    Blocks,
    BranchLayerNorm,
    BranchRMSNorm,
    ChannelGate,
    ChannelsLastConv2d,
    ConditionalPosition,
    ConvDownsample,
    ConvMlp,
    ConvNormAct,
    ConvStem,
    DeformableSampling,
    GroupLayerNorm,
    GroupLinear,
    HydraMixer,
    InvertedDownsample,
    LatentPooling,
    LeanMlp,
    Linear,
    NoncausalSSD,
    PaddedPatchConv,
    PatchExpanding,
    PatchMerging,
    PatchStem,
    ResidualStem,
    RotaryPosition,
    SelectiveScan,
    StreamLayerNorm,
    TreeMixer,
    TwiceBiasedScan,
    VimMixer,
    WavefrontMixer,
    WavefrontScan,
    cut_windows,
    stitch_windows,
)
from vssm.scan import bidirectional, cross, raster

MAPS = ((2, 5, 7, 8), (1, 1, 3, 8))
IMAGES = ((2, 3, 33, 29), (1, 3, 18, 40))
GRID = (3, 5)
TOKENS = ((2, 15, 8),)
SMALL = ((2, 3, 9, 7),)


@dataclass(frozen=True)
class Part:
    """A part, what it computes in plain torch, and inputs for it.

    Args:
        make: makes the part from device and dtype.
        expected: the output, from the part's parameters and the input.
        shapes: of the inputs.
        arguments: what `forward` takes beside the input.
    """

    make: Callable[..., nn.Module]
    expected: Callable[[Any, Tensor], Tensor]
    shapes: Sequence[tuple[int, ...]] = MAPS
    arguments: tuple[Any, ...] = ()


def toy_block(**options: Any) -> Callable[..., Block]:
    """A block with linear layers for mixer and MLP, and linear positions where the options say so."""

    def make(position: bool = False, with_mlp: bool = True, **dd: Any) -> Block:
        def layer() -> nn.Linear:
            return nn.Linear(8, 8, **dd)

        positions = {"position": layer(), "position2": layer()} if position else {}
        return Block(8, layer(), layer() if with_mlp else None, **positions, **rest, **dd)

    rest = {name: value for name, value in options.items() if name not in ("position", "with_mlp")}
    return partial(make, **{name: value for name, value in options.items() if name not in rest})


def with_projection(**dd: Any) -> BatchNormStem:
    layers = [(8, 7, 2), (8, 3, 1)]
    return BatchNormStem(3, layers, ChannelsLastConv2d(8, 4, 3, stride=2, padding=1, **dd), eps=1e-3, **dd)


PARTS = {
    "convolution": Part(
        partial(ChannelsLastConv2d, 8, 6, 3, stride=2, padding=1), lambda layer, x: plain.conv(x, layer)
    ),
    "convolution with batch norm": Part(
        partial(ConvNormAct, 3, 6, 3, 2), lambda layer, x: plain.conv_bn(x.movedim(1, 3), layer).movedim(3, 1), SMALL
    ),
    "norm of a branch": Part(partial(BranchLayerNorm, 8), lambda norm, x: plain.layer_norm(x, norm)),
    "norm of a stream": Part(partial(StreamLayerNorm, 8), lambda norm, x: plain.layer_norm(x, norm)),
    "norm of groups": Part(partial(GroupLayerNorm, 8, groups=2), plain.group_norm),
    "norm without mean": Part(partial(BranchRMSNorm, 8), lambda norm, x: F.rms_norm(x, (8,), norm.weight, eps=1e-5)),
    "scan": Part(
        partial(SelectiveScan, 8, directions=4, state=4, rank=2),
        lambda scan, x: plain.directions(cross(*GRID).table, x, partial(plain.recurrence, scan)),
        TOKENS,
        (cross(*GRID).table,),
    ),
    "scan, its bias twice": Part(
        partial(TwiceBiasedScan, 8, directions=4, state=4, rank=2),
        lambda scan, x: plain.directions(cross(*GRID).table, x, partial(plain.recurrence, scan)),
        TOKENS,
        (cross(*GRID).table,),
    ),
    "scan of a map": Part(partial(WavefrontScan, 8, state=4, rank=2), plain.wavefront),
    "mixer of Mamba2D": Part(partial(WavefrontMixer, 8, state=4), plain.wavefront_mixer),
    "mixer of Mamba2D's first version": Part(
        partial(WavefrontMixer, 8, state=4, shared_input=True), plain.wavefront_mixer
    ),
    "mixer of VMamba": Part(partial(SS2D, 8), plain.ss2d),
    "mixer of VMamba, gated": Part(partial(SS2D, 8, state=3, expansion=2.0, conv_bias=True, gated=True), plain.ss2d),
    "mixer of Vim": Part(
        partial(VimMixer, 8, state=4), partial(plain.vim_mixer, bidirectional(*GRID).table), TOKENS, GRID
    ),
    "mixer of Mamba": Part(
        partial(VimMixer, 8, state=4, scan_order=raster), partial(plain.vim_mixer, raster(*GRID).table), TOKENS, GRID
    ),
    "mixer of GrootVL": Part(partial(TreeMixer, 8), plain.tree_mixer),
    "mixer of Mamba-2": Part(partial(SSD, 8, heads=2, state=4, scan_order=bidirectional), plain.ssd),
    "mixer of Hydra": Part(partial(HydraMixer, 8, heads=2, state=4), plain.hydra),
    "mixer of Hydra, tokens": Part(partial(HydraMixer, 8, heads=2, state=4), plain.hydra, TOKENS, GRID),
    "mixer of VSSD": Part(partial(NoncausalSSD, 8, heads=2, state=4), plain.noncausal_ssd),
    "attention": Part(partial(Attention, 8, heads=2), plain.attention),
    "attention of tokens": Part(partial(Attention, 8, heads=2), plain.attention, TOKENS),
    "attention without bias": Part(partial(Attention, 8, heads=2, qkv_bias=False, proj_bias=False), plain.attention),
    "attention, rotated and normed": Part(
        lambda **dd: Attention(8, heads=2, rotary=RotaryPosition(4), qk_norm=BranchLayerNorm, **dd),
        partial(plain.attention, rotated=True, normed=True),
    ),
    "pooling by attention": Part(partial(LatentPooling, 8, heads=2), plain.latent_pooling, TOKENS),
    "rotation of heads": Part(
        lambda **dd: RotaryPosition(8), lambda _, x: plain.rotary(x), ((2, 5, 7, 3, 8), (1, 1, 3, 2, 8))
    ),
    "rotation of a map": Part(lambda **dd: RotaryPosition(8), lambda _, x: plain.rotary(x[..., None, :])[..., 0, :]),
    "rotation of tokens": Part(
        lambda **dd: RotaryPosition(8, grid=14),
        lambda _, x: plain.rotary(x.unflatten(1, GRID)[..., None, :], grid=14)[..., 0, :].flatten(1, 2),
        TOKENS,
        GRID,
    ),
    "conditional position": Part(partial(ConditionalPosition, 8), lambda layer, x: x + plain.conv(x, layer)),
    "deformable sampling": Part(partial(DeformableSampling, 8, groups=2), plain.deformable_sampling),
    "deformable sampling, predicted from a convolution": Part(
        partial(DeformableSampling, 8, groups=1, depthwise=True), plain.deformable_sampling
    ),
    "linear layer": Part(partial(Linear, 8, 24), plain.linear_layer),
    "linear layers of groups": Part(
        partial(GroupLinear, 4, 2, 6), lambda layer, x: torch.cat(plain.groups(x, layer), -1)
    ),
    "linear layers of groups, in halves": Part(partial(GroupLinear, 4, 2, 6, halves=True), plain.halves_of_groups),
    "MLP": Part(partial(LeanMlp, 8, 24), plain.mlp),
    "MLP with convolution": Part(partial(ConvMlp, 8, 24), plain.conv_mlp),
    "MLP with convolution alone": Part(partial(ConvMlp, 8, 24, residual=False, pointwise=Linear), plain.conv_mlp),
    "gate": Part(partial(ChannelGate, 8), plain.gate),
    "gate with norm, GELU and biases": Part(
        partial(ChannelGate, 8, 4, norm=BranchLayerNorm, act=nn.GELU, bias=True), partial(plain.gate, act=F.gelu)
    ),
    "gate of directions": Part(
        partial(ChannelGate, 8, 4, bias=True), partial(plain.gate, over=(1,)), ((2, 15, 4, 8),), (1,)
    ),
    "block": Part(toy_block(), plain.two_branches),
    "block of tokens": Part(
        lambda **dd: Block(8, VimMixer(8, state=4, **dd), norm=BranchRMSNorm, **dd),
        lambda block, x: (
            x + plain.vim_mixer(bidirectional(*GRID).table, block.mixer, F.rms_norm(x, (8,), block.norm.weight, 1e-5))
        ),
        TOKENS,
        GRID,
    ),
    "blocks": Part(lambda **dd: Blocks(*(toy_block()(**dd) for _ in range(3))), plain.blocks),
    "block without MLP": Part(toy_block(with_mlp=False), plain.mixer_alone),
    "block, MLP normed after": Part(toy_block(post_norm=True), plain.post_normed),
    "block with positions": Part(toy_block(position=True), plain.positioned),
    "block with scaled branches": Part(toy_block(layer_scale=1e-5), plain.scaled),
    "block with scaled residuals": Part(toy_block(residual_scale=True), plain.residual_scaled),
    "block with norms of their own": Part(
        toy_block(norm=nn.Identity, norm2=partial(BranchLayerNorm, eps=1e-3)), plain.norms_of_their_own
    ),
    "downsampling": Part(
        partial(ConvDownsample, 8, 16), lambda down, x: plain.layer_norm(plain.conv(x, down.conv), down.norm)
    ),
    "downsampling, convolution alone": Part(
        partial(ConvDownsample, 8, 16, bias=False, norm=nn.Identity), lambda down, x: plain.conv(x, down.conv)
    ),
    "downsampling, patches merged": Part(partial(PatchMerging, 8, 16), plain.merged),
    "upsampling": Part(partial(PatchExpanding, 8, 4), plain.expanded),
    "downsampling, inverted": Part(partial(InvertedDownsample, 8, 4), plain.inverted),
    "stem of patches": Part(
        partial(PatchStem, 3, 8, norm=StreamLayerNorm),
        lambda stem, x: plain.layer_norm(plain.image_conv(x, stem.proj), stem.norm),
        IMAGES,
    ),
    "stem of overlapping patches": Part(
        partial(PatchStem, 3, 8, 7, stride=4, padding=2, bias=False),
        lambda stem, x: plain.image_conv(x, stem.proj),
        IMAGES,
    ),
    "stem of padded patches": Part(
        partial(PatchStem, 3, 8, 16, stride=8, padding=None),
        lambda stem, x: plain.padded_conv(stem.proj, x.permute(0, 2, 3, 1)),
        IMAGES,
    ),
    "convolution of padded patches": Part(partial(PaddedPatchConv, 8, 4, 3, stride=3), plain.padded_conv),
    "stem of convolutions": Part(partial(ConvStem, 3, 8, eps=1e-3), plain.conv_stem, IMAGES),
    "stem with batch norm": Part(
        partial(BatchNormStem, 3, [(8, 3, 2), (16, 3, 2)], eps=1e-3), plain.batch_norm_stem, IMAGES
    ),
    "stem with batch norm and projection": Part(with_projection, plain.batch_norm_stem, IMAGES),
    "stem with a residual": Part(partial(ResidualStem, 3, 8), plain.residual_stem, IMAGES),
}
every_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
STEMS = {name: part for name, part in PARTS.items() if part.shapes is IMAGES}


def made(part: Part) -> nn.Module:
    """The part in evaluation, with random parameters and statistics of batch norms: none is 0 or 1."""
    torch.manual_seed(0)
    module = part.make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.01, 1)
    return module


def gradients(output: Tensor, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of the input and of every parameter, where the output is weighted by fixed numbers."""
    names, tensors = zip(("input", x), *module.named_parameters(), strict=True)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return dict(zip(names, torch.autograd.grad((output * weights).sum(), tensors, allow_unused=True), strict=True))


CASES = [pytest.param(part, shape, id=f"{name}, {shape}") for name, part in PARTS.items() for shape in part.shapes]


@pytest.mark.parametrize(("part", "shape"), CASES)
def test_output_and_gradients_are_those_of_plain_torch(part: Part, shape: tuple[int, ...]) -> None:
    module, x = made(part), torch.randn(shape).requires_grad_()
    output, expected = module(x, *part.arguments), part.expected(module, x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert output.is_contiguous()
    with torch.no_grad():  # some parts take another way, since nothing is saved for a backward
        torch.testing.assert_close(module(x, *part.arguments), expected, rtol=1e-4, atol=1e-5)
    found, wanted = gradients(output, module, x), gradients(expected, module, x)
    assert [name for name, gradient in wanted.items() if gradient is None] == [], "no gradient in plain torch"
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("part", "shape"), CASES)
def test_bfloat16_autocast_is_close_to_float32(part: Part, shape: tuple[int, ...]) -> None:
    module, x = made(part), torch.randn(shape).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x, *part.arguments)
    expected = module(x, *part.arguments)
    assert (output.float() - expected).norm() <= 0.05 * expected.norm()
    assert all(gradient.isfinite().all() for gradient in gradients(output.float(), module, x).values())


@every_part
def test_parameters_are_made_on_the_device_and_in_the_dtype_asked_for(part: Part) -> None:
    module = part.make(device="meta", dtype=torch.bfloat16)
    kinds = {(parameter.device.type, parameter.dtype) for parameter in module.parameters()}
    assert kinds <= {("meta", torch.bfloat16)}


@pytest.mark.parametrize(
    ("make", "option", "biases"),
    [
        (partial(Attention, 8, 2), {"qkv_bias": False}, {"qkv.bias"}),
        (partial(Attention, 8, 2), {"proj_bias": False}, {"proj.bias"}),
        (partial(ChannelGate, 8), {"bias": True}, {"reduce.bias", "expand.bias"}),
        (partial(ConvDownsample, 8, 16), {"bias": False}, {"conv.bias"}),
        (partial(PatchStem, 3, 8), {"bias": False}, {"proj.bias"}),
        (partial(SS2D, 8), {"conv_bias": True}, {"conv.bias"}),
    ],
)
def test_options_add_or_remove_biases(
    make: Callable[..., nn.Module], option: dict[str, bool], biases: set[str]
) -> None:
    with_bias, without = (set(make(**{name: value}).state_dict()) for name in option for value in (True, False))
    assert with_bias - without == biases and without < with_bias
    assert set(make(**option).state_dict()) != set(make().state_dict()), "the option is the default"


@every_part
def test_copies_are_independent_and_compute_the_same(part: Part) -> None:
    module, x = made(part), torch.randn(part.shapes[0])
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin(x, *part.arguments), module(x, *part.arguments), rtol=0, atol=0)


def test_every_part_has_a_row() -> None:
    public = [value for value in map(vars(vssm.nn).get, vssm.nn.__all__) if isinstance(value, type)]
    classes = {value for value in public if issubclass(value, nn.Module)}
    covered = {kind for part in PARTS.values() for kind in type(part.make()).mro()}
    assert {kind.__name__ for kind in classes - covered} == set(), "add a row to PARTS"


@pytest.mark.parametrize("part", STEMS.values(), ids=STEMS)
def test_stems_name_their_first_convolution_and_refuse_other_channels(part: Part) -> None:
    stem = part.make()
    first = stem.get_submodule(stem.first_conv)
    assert isinstance(first, nn.Conv2d) and first.in_channels == stem.in_chans
    assert stem(torch.randn(2, 3, 12 * stem.stride, 16 * stem.stride)).shape[1] in (11, 12)  # 11 where patches overlap
    with pytest.raises(ValueError, match=r"expected \(batch, 3 channels, height, width\)"):
        stem(torch.randn(1, 4, 32, 32))


@pytest.mark.parametrize("padding", [0, 2, None])
@pytest.mark.parametrize("stride", [4, 7])
def test_patch_stem_knows_its_grid(stride: int, padding: int | None) -> None:
    stem = PatchStem(3, 2, 7, stride, padding=padding)
    for height, width in product((7, 16, 23), repeat=2):
        assert stem(torch.randn(1, 3, height, width)).shape[1:3] == stem.grid(height, width)


def test_deformable_sampling_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="3 groups share 8 channels; expected a number of groups that divides them"):
        DeformableSampling(8, groups=3)


def test_deformable_sampling_far_outside_of_the_map_is_zero() -> None:
    layer = DeformableSampling(8, groups=1)
    layer.offset_mask.bias.data[:18] = torch.tensor([1e9, -1e9]).repeat(9)
    assert not layer(torch.randn(1, 3, 5, 8)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
def test_deformable_sampling_without_gradients_is_the_same(batch: int, dtype: torch.dtype) -> None:
    """There it is another operation of torch's."""
    layer, x = DeformableSampling(8, groups=2).to(dtype), torch.randn(batch, 5, 7, 8, dtype=dtype)
    nn.init.normal_(layer.offset_mask.weight)
    expected = layer(x).detach()
    with torch.no_grad():
        found = layer(x)
    assert found.dtype == dtype and found.shape == expected.shape
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_patch_stem_refuses_less_than_one_patch() -> None:
    with pytest.raises(ValueError, match="expected at least one patch, 3 x 3"):
        PatchStem(3, 2, 7, padding=2)(torch.randn(1, 3, 2, 9))
    assert PatchStem(3, 2, 7, padding=None)(torch.randn(1, 3, 2, 9)).shape == (1, 1, 2, 2)


class Network(nn.Module):
    """Parts of every kind one after another, windows between."""

    def __init__(self) -> None:
        super().__init__()
        attention = Attention(8, heads=2, rotary=RotaryPosition(4), qk_norm=BranchLayerNorm)
        positions = {"position": ConditionalPosition(8), "position2": ConditionalPosition(8)}
        self.stem = ResidualStem(3, 8)
        self.first = Block(8, attention, LeanMlp(8, 16), layer_scale=1.0, **positions)
        self.down = InvertedDownsample(8, 16)
        self.second = Block(16, SS2D(16, gated=True), ConvMlp(16, 32), post_norm=True)
        self.gate = ChannelGate(16, norm=BranchLayerNorm)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = stitch_windows(self.first(cut_windows(x, 7)), x.shape[1], x.shape[2])
        return self.gate(self.second(self.down(x)))


def test_parts_are_traced_by_fx_for_every_size_and_exported() -> None:
    torch.manual_seed(0)
    network, image = Network().eval(), torch.randn(2, 3, 70, 61)
    traced = create_feature_extractor(network, ["gate"])
    for x in (image, torch.randn(1, 3, 48, 40)):
        torch.testing.assert_close(traced(x)["gate"], network(x))
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))
