"""LBMamba: the scan with local blocks, the order of every second block, the maps, and the pooling."""

import pytest
import torch
from torch.nn import functional as F

from vssm.models.lbmamba import LBMamba, LocallyBackwards, LocallyBidirectionalScan, window
from vssm.ops import ScanTable
from vssm.scan import backwards, chain, raster


@torch.no_grad()
@pytest.mark.parametrize("tokens", [6, 130], ids=["blocks of 4", "blocks of 8"])
def test_scan_is_two_loops_over_the_steps(tokens: int) -> None:
    """Written out as in the paper, on a sequence read from its end, whose last block is a short one."""
    scan, x = LocallyBidirectionalScan(channels=3, directions=1, state=2, rank=1), torch.randn(1, tokens, 3)
    order = backwards(raster)
    tables = [ScanTable.of(each(1, tokens).table, tokens, x.device) for each in (order, LocallyBackwards(order))]
    delta, B, C = (part[0, :, 0].flip(0) for part in scan.project(x))
    u, length = x[0].flip(0), window(tokens)
    delta = F.softplus(delta @ scan.dt_proj[0].T + scan.dt_bias[0])
    decays = torch.exp(delta[..., None] * scan.rates()[0])
    inputs = (delta * u)[..., None] * B[:, None]
    states, state = [], torch.zeros(3, 2)
    for decay, new in zip(decays, inputs, strict=True):
        state = decay * state + new
        states.append(state)
    for step in reversed(range(tokens)):
        if step == tokens - 1 or (step + 1) % length == 0:
            after = torch.zeros(3, 2)
        from_right = decays[step] * after
        states[step] = states[step] + from_right
        after = from_right + inputs[step]
    expected = (torch.stack(states) * C[:, None]).sum(-1) + scan.D[0] * u
    torch.testing.assert_close(scan(x, *tables)[0].flip(0), expected, atol=1e-5, rtol=1e-5)


def test_every_second_block_reads_backwards() -> None:
    """The blocks of the scan lie at the beginning of what is read, so that a short one is at either end in turn."""
    tables = [block.mixer.local_table(1, 6, torch.device("cpu")).table.tolist() for block in LBMamba(depth=4).blocks]
    assert tables == [[[3, 2, 1, 0, -1, -1, 5, 4]], [[2, 3, 4, 5, -1, -1, 0, 1]]] * 2


def test_a_walk_over_every_token_twice_counts_each_visit() -> None:
    def twice(height: int, width: int):
        return chain(raster(height, width), raster(height, width))

    assert LocallyBackwards(twice)(1, 3).table.tolist() == [[0, 2, 1, 0, -1, -1, 2, 1]]


@torch.no_grad()
def test_maps_are_what_blocks_add_to_the_stream() -> None:
    model, image = LBMamba(embed_dim=32, depth=2, img_size=64).eval(), torch.randn(1, 3, 64, 48)
    _, (first, second) = model.forward_intermediates(image, output_fmt="NHWC")
    stream = model.embed(image)[0] + first.flatten(1, 2) + second.flatten(1, 2)
    torch.testing.assert_close(model.norm(stream), model.forward_features(image))


def test_pooling_by_attention_is_removed_and_never_added() -> None:
    model = LBMamba(embed_dim=36, depth=1, global_pool="map")
    model.reset_classifier(5, "avg")
    assert model.attn_pool is None and model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match="no pooling by attention"):
        model.reset_classifier(5, "map")
