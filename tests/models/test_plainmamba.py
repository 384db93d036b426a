"""What is particular to PlainMamba: moves, and tokens that alone are permuted."""

import pytest
import timm
import torch
from torch import nn

import vssm  # noqa: F401
from vssm.models.plainmamba import Moves, PlainMambaMixer, StepOfToken
from vssm.scan import atrous, raster, windows, zigzag

RIGHT, LEFT, UP, DOWN = 1, 2, 3, 4


def test_moves_along_the_snakes():
    moves = Moves(zigzag)(2, 3).table.view(-1, 2, 3).tolist()
    assert moves[0] == [[0, RIGHT, RIGHT], [LEFT, LEFT, DOWN]]
    assert moves[1] == [[LEFT, LEFT, UP], [0, RIGHT, RIGHT]]
    assert moves[2] == [[0, UP, RIGHT], [DOWN, RIGHT, DOWN]]
    assert Moves(raster)(2, 2).table.tolist() == [[0, RIGHT, 0, RIGHT]]  # a jump is no move


def test_an_order_that_leaves_tokens_out_is_refused():
    with pytest.raises(ValueError, match="expected each once per direction"):
        StepOfToken(atrous(2))(3, 3)
    assert StepOfToken(windows(2))(3, 3).steps == 9  # empty steps are left out


def test_the_scan_is_the_official_loop():
    """Token order[t] is read at step t, with the step size, B and C of token t; the bias counts twice."""
    torch.manual_seed(0)
    height, width, dim = 3, 4, 8
    mixer = PlainMambaMixer(dim, state=2).double()
    scan, x = mixer.scan, torch.randn(1, height * width, 2 * dim, dtype=torch.float64)
    tables = [make(height, width, x.device) for make in mixer.order_tables]
    rank, state = scan.rank, scan.state
    low, B, C = (x[0] @ scan.x_proj[0].T).split([rank, state, state], -1)
    delta = nn.functional.softplus(low @ scan.dt_proj[0].T + 2 * scan.dt_bias[0])
    expected = torch.zeros(1, height * width, 4, 2 * dim, dtype=torch.float64)
    for k in range(4):
        order, move = zigzag(height, width).table[k].long(), Moves(zigzag)(height, width).table[k].long()
        h = torch.zeros(2 * dim, state, dtype=torch.float64)
        for t, token in enumerate(order):
            b = B[t] + scan.B_of_move[move[token]]
            h = torch.exp(delta[t][:, None] * scan.rates()[k]) * h + (delta[t] * x[0, token])[:, None] * b
            expected[0, token, k] = h @ C[t] + scan.D[0] * x[0, token]
    torch.testing.assert_close(scan(x, *tables), expected)


def test_the_recipe_starts_from_normal_weights():
    torch.manual_seed(0)
    model = timm.create_model("plainmamba_l1", depth=1, normal_init=True)
    assert model.blocks[0].mixer.scan.dt_bias.abs().max() == 0
    assert abs(model.blocks[0].mixer.in_proj.weight.std().item() - 0.02) < 1e-3
    assert abs(model.head.weight.std().item() - 0.01) < 1e-3 and not model.head.bias.any()
    assert timm.create_model("plainmamba_l1", depth=1, normal_init=True, num_classes=0).num_classes == 0
