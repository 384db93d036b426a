"""What the parts of vssm.nn compute, in plain torch, from a part's parameters and its input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn import (
    SS2D,
    SSD,
    Attention,
    BatchNormStem,
    Block,
    Blocks,
    ChannelGate,
    ConvMlp,
    ConvStem,
    DeformableSampling,
    GroupLayerNorm,
    GroupLinear,
    HydraMixer,
    InvertedDownsample,
    LatentPooling,
    NoncausalSSD,
    PaddedPatchConv,
    PatchExpanding,
    PatchMerging,
    ResidualStem,
    SelectiveScan,
    TreeMixer,
    TwiceBiasedScan,
    VimMixer,
    WavefrontMixer,
    WavefrontScan,
)
from vssm.ops import grid_tree
from vssm.scan import bidirectional, cross


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution of a channels-last map."""
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)
    return y.permute(0, 2, 3, 1)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def pointwise(x: Tensor, layer: nn.Conv2d | nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def layer_norm(x: Tensor, norm: nn.LayerNorm, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps)


def group_norm(norm: GroupLayerNorm, x: Tensor) -> Tensor:
    parts = [F.layer_norm(part, part.shape[-1:]) for part in x.chunk(norm.groups, -1)]
    return torch.cat(parts, -1) * norm.weight + norm.bias


def groups(x: Tensor, layer: GroupLinear) -> list[Tensor]:
    return [F.linear(part, weight) for part, weight in zip(x.chunk(len(layer.weight), -1), layer.weight, strict=True)]


def halves_of_groups(layer: GroupLinear, x: Tensor) -> Tensor:
    first, second = zip(*(part.chunk(2, -1) for part in groups(x, layer)), strict=True)
    return torch.cat([*second, *first], -1)


def conv_bn(x: Tensor, layer: nn.Module, act: bool = True, eps: float = 1e-5) -> Tensor:
    """Convolution, batch norm in evaluation, ReLU."""
    bn = layer.bn
    y = (conv(x, layer.conv) - bn.running_mean) / torch.sqrt(bn.running_var + eps) * bn.weight + bn.bias
    return y.relu() if act else y


def recurrence(scan: SelectiveScan, k: int, sequence: Tensor) -> Tensor:
    """The state-space model of direction k over (batch, steps, channels)."""
    step, B, C = (sequence @ scan.x_proj[k].T).split([scan.rank, scan.state, scan.state], -1)
    times = 2 if isinstance(scan, TwiceBiasedScan) else 1
    delta = F.softplus(step @ scan.dt_proj[k].T + times * scan.dt_bias[k])
    state, outputs = 0, []
    for t in range(sequence.shape[1]):
        decay = torch.exp(-delta[:, t, :, None] * scan.A_log[k].exp())
        state = decay * state + (delta * sequence)[:, t, :, None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1) + scan.D[k] * sequence[:, t])
    return torch.stack(outputs, 1)


def wavefront(scan: WavefrontScan, x: Tensor) -> Tensor:
    """Mamba2D's recurrence, position by position."""
    ways = scan.ways_of_B
    *steps, B, C = scan.x_proj(x).split([scan.rank, scan.rank, ways * scan.state, scan.state], -1)
    entering, decays = [], []
    for way in range(2):  # from above, from the left
        delta = F.softplus(steps[way] @ scan.dt_proj[way].T + scan.dt_bias[way])
        entering.append((delta * x)[..., None] * B.chunk(ways, -1)[way % ways][..., None, :])
        decays.append(torch.exp(-delta[..., None] * scan.A_log[way].exp()))
    states, outputs = {}, []
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            above, left = ((0, states.get((i - 1, j))), (1, states.get((i, j - 1))))
            open_ways = [(way, state) for way, state in (above, left) if state is not None] or [(1, 0)]
            found = [decays[way][:, i, j] * state + entering[way][:, i, j] for way, state in open_ways]
            states[i, j] = sum(found) / len(found)
            outputs.append((states[i, j] * C[:, i, j, None]).sum(-1) + scan.D * x[:, i, j])
    return torch.stack(outputs, 1).unflatten(1, x.shape[1:3])


def wavefront_mixer(mixer: WavefrontMixer, x: Tensor) -> Tensor:
    return mixer.out_proj(F.gelu(wavefront(mixer.scan, F.gelu(mixer.in_proj(x)))))


def directions(table: Tensor, tokens: Tensor, walk: Callable[[int, Tensor], Tensor]) -> Tensor:
    """walk(k, the tokens in the order of direction k) of every direction, back in raster order."""
    return torch.stack([walk(k, tokens[:, steps])[:, steps.argsort()] for k, steps in enumerate(table.long())], 2)


def along(table: Tensor, tokens: Tensor, walk: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The sum over directions."""
    return directions(table, tokens, walk).sum(2)


def ss2d(mixer: SS2D, x: Tensor) -> Tensor:
    _, height, width, _ = x.shape
    x = linear(x, mixer.in_proj)
    x, z = x.chunk(2, -1) if mixer.gated else (x, None)
    x = F.silu(conv(x, mixer.conv))
    y = along(cross(height, width).table, x.flatten(1, 2), partial(recurrence, mixer.scan)).view_as(x)
    y = layer_norm(y, mixer.norm)
    return linear(y if z is None else y * F.silu(z), mixer.out_proj)


def vim_mixer(table: Tensor, mixer: VimMixer, tokens: Tensor) -> Tensor:
    x, z = linear(tokens, mixer.in_proj).chunk(2, -1)

    def walk(k: int, sequence: Tensor) -> Tensor:
        weight, bias = mixer.conv_weight[k, :, None], mixer.conv_bias[k]
        causal = F.conv1d(F.pad(sequence.mT, (3, 0)), weight, bias, groups=len(bias)).mT
        return recurrence(mixer.scan, k, F.silu(causal))

    return linear(along(table, x, walk) / len(table) * F.silu(z), mixer.out_proj)


def noncausal_ssd(mixer: NoncausalSSD, x: Tensor) -> Tensor:
    """As attention without softmax: B for keys, C for queries."""
    inner, state, heads = mixer.inner, mixer.state, mixer.heads
    z, rest, step = linear(x, mixer.in_proj).split([inner, inner + 2 * state, heads], -1)
    values, keys, queries = F.silu(conv(rest, mixer.conv)).flatten(1, 2).split([inner, state, state], -1)
    values = values.unflatten(-1, (heads, -1))
    weights = F.softplus(step.flatten(1, 2) + mixer.dt_bias) * mixer.A_log.exp()
    y = torch.einsum("bls,bms,bmh,bmhc->blhc", queries, keys, weights, values) + mixer.D[:, None] * values
    return linear(layer_norm(y.flatten(2), mixer.norm).view_as(z) * z, mixer.out_proj)


def tree_mixer(mixer: TreeMixer, x: Tensor) -> Tensor:
    """With the weights of paths as one matrix for each image and channel, filled from the root on."""
    scan = mixer.scan
    x, z = linear(x, mixer.in_proj).chunk(2, -1)
    x = F.silu(conv(x, mixer.conv))
    u = x.flatten(1, 2)
    step, B, C = (u @ scan.x_proj[0].T).split([scan.rank, 1, 1], -1)
    step = F.softplus(step @ scan.dt_proj[0].T + scan.dt_bias[0])
    edge = torch.exp(-step * scan.A_log[0, :, 0].exp())
    states = []
    for table, added, weight in zip(grid_tree(x)[:, :2].tolist(), step * B * u, edge, strict=True):
        path = {(0, 0): torch.ones_like(weight[0])}
        for i, (vertex, parent) in enumerate(zip(*table, strict=True)):
            for other in table[0][:i]:
                path[vertex, other] = path[other, vertex] = path[parent, other] * weight[vertex]
            path[vertex, vertex] = path[0, 0]
        tokens = range(len(added))
        states.append(torch.stack([sum(path[v, s] * added[s] for s in tokens) for v in tokens]))
    y = layer_norm(torch.stack(states), mixer.state_norm) * C + scan.D[0] * u
    return linear(layer_norm(y, mixer.norm).view_as(x) * F.silu(z), mixer.out_proj)


def duality(mixer: SSD | HydraMixer, k: int, x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """What a step takes from itself and earlier ones along direction k, as a matrix (batch, heads, steps, steps), and
    the values (batch, steps, heads, channels) that it multiplies; both along the steps."""
    inner, state, heads = mixer.inner, mixer.state, mixer.heads
    _, rest, delta = linear(x, mixer.in_proj).split([inner, inner + 4 * state, 2 * heads], -1)
    values, BC = F.silu(conv(rest, mixer.conv)).flatten(1, 2)[:, steps].split([inner, 4 * state], -1)
    keys, queries = BC.chunk(4, -1)[2 * k : 2 * k + 2]
    A, bias = (each if each.dim() == 1 else each[k] for each in (mixer.A_log.exp(), mixer.dt_bias))
    step = F.softplus(delta.flatten(1, 2)[:, steps].chunk(2, -1)[k] + bias).mT
    since = (step * -A[:, None]).cumsum(-1)
    decay = (since[..., None] - since[..., None, :]).exp().tril()
    matrix = (queries @ keys.mT).unsqueeze(1) * decay * step[..., None, :]
    return matrix, values.unflatten(-1, (heads, -1))


def ssd(mixer: SSD, x: Tensor) -> Tensor:
    """As masked attention without softmax, in two directions."""
    total = 0
    for k, steps in enumerate(bidirectional(*x.shape[1:3]).table.long()):
        matrix, values = duality(mixer, k, x, steps)
        y = torch.einsum("bhts,bshc->bthc", matrix, values) + mixer.D[k, :, None] * values
        total = total + y[:, steps.argsort()]
    z = linear(x, mixer.in_proj)[..., : mixer.inner]
    y = F.rms_norm(total.flatten(2).view_as(z) * F.silu(z), (mixer.inner,), mixer.norm.weight, eps=1e-5)
    return linear(y, mixer.out_proj)


def hydra(mixer: HydraMixer, x: Tensor, *grid: int) -> Tensor:
    """The matrix below its diagonal, moved down by one; above it, moved up; and on it."""
    rows = x.flatten(1, -2).unsqueeze(1)
    forwards = torch.arange(rows.shape[2])
    below, values = duality(mixer, 0, rows, forwards)
    above = duality(mixer, 1, rows, forwards.flip(0))[0].flip(-1, -2)
    diagonal = (linear(values.flatten(2), mixer.diagonal) + mixer.D).mT
    matrix = F.pad(below, (0, 0, 1, 0))[:, :, :-1] + F.pad(above, (0, 0, 0, 1))[:, :, 1:] + torch.diag_embed(diagonal)
    y = torch.einsum("bhts,bshc->bthc", matrix, values).flatten(2)
    z = linear(x, mixer.in_proj)[..., : mixer.inner]
    y = F.rms_norm(y, (mixer.inner,), mixer.norm.weight, eps=1e-5).view_as(z)
    return linear(y * F.silu(z), mixer.out_proj)


def gate(channel_gate: ChannelGate, x: Tensor, over: tuple[int, ...] = (1, 2), act: Callable = F.relu) -> Tensor:
    normed = x if isinstance(channel_gate.norm, nn.Identity) else layer_norm(x, channel_gate.norm)
    hidden = act(linear(normed.mean(over, keepdim=True), channel_gate.reduce))
    return x / (1 + torch.exp(-linear(hidden, channel_gate.expand)))


def rotary(x: Tensor, grid: int | None = None) -> Tensor:
    """Pairs of channels as complex numbers, turned; x is (batch, height, width, heads, channels)."""
    _, height, width, _, channels = x.shape
    speed = 10000.0 ** (-4 * torch.arange(channels // 4) / channels)
    rows, columns = torch.meshgrid(torch.arange(grid or height), torch.arange(grid or width), indexing="ij")
    angles = torch.cat([rows[..., None] * speed, columns[..., None] * speed], -1)
    turns = torch.polar(torch.ones_like(angles), angles)
    if grid:
        real, imaginary = (
            F.interpolate(part.permute(2, 0, 1)[None], (height, width), mode="bicubic")[0].permute(1, 2, 0)
            for part in (turns.real, turns.imag)
        )
        turns = torch.complex(real, imaginary)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[:, :, None]).flatten(-2)


def attention(module: Attention, x: Tensor, heads: int = 2, rotated: bool = False, normed: bool = False) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in linear(x, module.qkv).chunk(3, -1))
    q, k = (rotary(q), rotary(k)) if rotated else (q, k)
    q, k = (layer_norm(q, module.q_norm), layer_norm(k, module.k_norm)) if normed else (q, k)
    q, k, v = (part.flatten(1, -3) for part in (q, k, v))
    weights = torch.einsum("blhc,bmhc->bhlm", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return linear(torch.einsum("bhlm,bmhc->blhc", weights, v).reshape(x.shape), module.proj)


def latent_pooling(module: LatentPooling, x: Tensor) -> Tensor:
    k, v = (part.unflatten(-1, (module.heads, -1)) for part in linear(x, module.kv).chunk(2, -1))
    q = module.latent[0, 0].unflatten(-1, (module.heads, -1))
    weights = torch.einsum("hc,bmhc->bhm", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return layer_norm(torch.einsum("bhm,bmhc->bhc", weights, v).flatten(1), module.norm)


def linear_layer(layer: nn.Module, x: Tensor) -> Tensor:
    return linear(x, layer)


def mlp(layers: nn.Module, x: Tensor) -> Tensor:
    return linear(F.gelu(linear(x, layers.fc1)), layers.fc2)


def conv_mlp(layers: ConvMlp, x: Tensor) -> Tensor:
    hidden = pointwise(x, layers.fc1)
    local = conv(hidden, layers.conv)
    return pointwise(F.gelu(hidden + local if layers.residual else local), layers.fc2)


def two_branches(block: Block, x: Tensor) -> Tensor:
    x = x + linear(layer_norm(x, block.norm), block.mixer)
    return x + linear(layer_norm(x, block.norm2), block.mlp)


def blocks(several: Blocks, x: Tensor) -> Tensor:
    for block in several:
        x = two_branches(block, x)
    return x


def post_normed(block: Block, x: Tensor) -> Tensor:
    x = x + linear(layer_norm(x, block.norm), block.mixer)
    return x + layer_norm(linear(x, block.mlp), block.norm2)


def positioned(block: Block, x: Tensor) -> Tensor:
    x = linear(x, block.position)
    x = x + linear(layer_norm(x, block.norm), block.mixer)
    x = linear(x, block.position2)
    return x + linear(layer_norm(x, block.norm2), block.mlp)


def scaled(block: Block, x: Tensor) -> Tensor:
    x = x + block.layer_scale.gamma * linear(layer_norm(x, block.norm), block.mixer)
    return x + block.layer_scale2.gamma * linear(layer_norm(x, block.norm2), block.mlp)


def residual_scaled(block: Block, x: Tensor) -> Tensor:
    x = block.residual_scale.gamma * x + linear(layer_norm(x, block.norm), block.mixer)
    return block.residual_scale2.gamma * x + linear(layer_norm(x, block.norm2), block.mlp)


def norms_of_their_own(block: Block, x: Tensor) -> Tensor:
    x = x + linear(x, block.mixer)
    return x + linear(layer_norm(x, block.norm2, eps=1e-3), block.mlp)


def mixer_alone(block: Block, x: Tensor) -> Tensor:
    return x + linear(layer_norm(x, block.norm), block.mixer)


def merged(merging: PatchMerging, x: Tensor) -> Tensor:
    """The concatenation as Swin writes it, with odd sizes padded by zeros at the bottom and the right."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return linear(layer_norm(torch.cat(corners, -1), merging.norm), merging.reduction)


def expanded(expanding: PatchExpanding, x: Tensor) -> Tensor:
    """Each position's outputs are (row, column, channel) of a square of positions."""
    parts = linear(x, expanding.expand).unflatten(-1, (expanding.factor, expanding.factor, -1))
    batch, height, width, rows, columns, channels = parts.shape
    y = torch.empty(batch, height * rows, width * columns, channels, dtype=parts.dtype, device=x.device)
    for row in range(rows):
        for column in range(columns):
            y[:, row::rows, column::columns] = parts[:, :, :, row, column]
    return layer_norm(y, expanding.norm)


def inverted(down: InvertedDownsample, x: Tensor) -> Tensor:
    return conv_bn(conv(conv(x, down.widen).relu(), down.depthwise).relu(), down.narrow, act=False)


def padded_conv(layer: PaddedPatchConv, x: Tensor) -> Tensor:
    """All patches that a map with enough zeros has, cut to one for every started stride."""
    (kernel, _), (stride, _) = layer.kernel_size, layer.stride
    y = conv(F.pad(x, (0, 0, 0, kernel, 0, kernel)), layer)
    return y[:, : -(-x.shape[1] // stride), : -(-x.shape[2] // stride)]


def conv_stem(stem: ConvStem, image: Tensor) -> Tensor:
    x = F.gelu(layer_norm(conv(image.permute(0, 2, 3, 1), stem.conv1), stem.norm1, eps=1e-3))
    return layer_norm(conv(x, stem.conv2), stem.norm2, eps=1e-3)


def batch_norm_stem(stem: BatchNormStem, image: Tensor) -> Tensor:
    x = image.permute(0, 2, 3, 1)
    for layer in stem.layers:
        x = conv_bn(x, layer, eps=1e-3)
    return conv(x, stem.projection) if isinstance(stem.projection, nn.Conv2d) else x


def residual_stem(stem: ResidualStem, image: Tensor) -> Tensor:
    x = conv_bn(image.permute(0, 2, 3, 1), stem.conv1)
    x = x + conv_bn(conv_bn(x, stem.residual[0]), stem.residual[1], act=False)
    return conv_bn(conv_bn(x, stem.widen), stem.narrow, act=False)


def image_conv(image: Tensor, layer: nn.Conv2d) -> Tensor:
    return conv(image.permute(0, 2, 3, 1), layer)


def deformable_sampling(layer: DeformableSampling, x: Tensor) -> Tensor:
    """Every position weighs every other by how near it is to a sample, window columns from left to right."""
    seen = conv(x, layer.depthwise) if isinstance(layer.depthwise, nn.Conv2d) else x
    numbers = linear(seen, layer.offset_mask)[..., : 27 * layer.groups].unflatten(-1, (layer.groups, 27))
    values = x.unflatten(-1, (layer.groups, -1))
    rows, columns = (torch.arange(size, dtype=x.dtype) for size in x.shape[1:3])
    total = torch.zeros_like(values)
    for k, (column, row) in enumerate((column, row) for column in (-1, 0, 1) for row in (-1, 0, 1)):
        to_column = columns[:, None] + column + numbers[..., 2 * k]
        to_row = rows[:, None, None] + row + numbers[..., 2 * k + 1]
        by_column = (1 - (to_column[..., None] - columns).abs()).relu()
        by_row = (1 - (to_row[..., None] - rows).abs()).relu()
        sample = torch.einsum("bhwgr,bhwgs,brsgc->bhwgc", by_row, by_column, values)
        total = total + numbers[..., 18 + k, None] * sample
    return total.flatten(-2)
