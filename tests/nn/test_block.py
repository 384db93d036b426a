"""Blocks one after another: as on a GPU, where a norm's kernel makes the sum that the block before it ends in."""

import pytest
import torch
from torch import nn

import vssm.nn.block
from vssm.nn import Block, Blocks, BranchLayerNorm, BranchRMSNorm, ConditionalPosition
from vssm_kernels.testing import assert_close


@pytest.fixture
def sums(monkeypatch):
    """The norms that are asked for a sum and its norm, in their order; blocks go the way of a GPU."""
    asked = []
    for norm in (BranchLayerNorm, BranchRMSNorm):

        def of_sum(self, *addends, really=norm.of_sum, **how):
            asked.append(self)
            return really(self, *addends, **how)

        monkeypatch.setattr(norm, "of_sum", of_sum)
    monkeypatch.setattr(vssm.nn.block, "runs_eagerly_on_gpu", lambda x: True)
    return asked


def make_blocks(count=3, **arguments):
    torch.manual_seed(0)
    return Blocks(
        *(Block(8, nn.Linear(8, 8), nn.Linear(8, 8), norm=BranchLayerNorm, **arguments) for _ in range(count))
    )


def outputs_and_gradients(run, module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # of stochastic depth
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


def one_by_one(blocks):
    def run(x):
        for block in blocks:
            x = block(x)
        return x

    return run


@pytest.mark.parametrize("arguments", [{}, {"drop_path": 0.5}, {"post_norm": True}, {"mlp": None}], ids=str)
def test_sums_between_blocks_are_joined_with_norms(sums, arguments):
    blocks = make_blocks(**arguments) if "mlp" not in arguments else Blocks(*(Block(8, nn.Linear(8, 8)) for _ in "abc"))
    x = torch.randn(6, 5, 8)
    expected = outputs_and_gradients(one_by_one(blocks), blocks, x)
    sums.clear()
    found = outputs_and_gradients(blocks, blocks, x)
    assert [norm for norm in sums if norm in {block.norm for block in blocks}] == [block.norm for block in blocks[1:]]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, "result", 1e-6)


def _with_hook(blocks):
    blocks[1].register_forward_pre_hook(lambda module, inputs: None)


def _with_another_forward(blocks):
    blocks[1].forward = lambda x: Block.forward(blocks[1], x)


def _compiled(blocks):
    blocks[1].compile(backend="eager")


def _with_hook_on_norm(blocks):
    blocks[1].norm.register_forward_hook(lambda module, inputs, output: None)


def _another_class(blocks):
    blocks[1].__class__ = type("Other", (Block,), {})


CHANGES = [_with_hook, _with_another_forward, _compiled, _another_class, _with_hook_on_norm]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_sum_that_somebody_sees_is_not_joined(sums, change):
    blocks = make_blocks()
    x = torch.randn(2, 5, 8)
    expected = outputs_and_gradients(one_by_one(blocks), blocks, x)
    change(blocks)
    sums.clear()
    found = outputs_and_gradients(blocks, blocks, x)
    assert blocks[1].norm not in sums
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, "result", 1e-6)


@pytest.mark.parametrize("arguments", [{"layer_scale": 0.1}, {"residual_scale": True}, {"position": nn.Identity()}])
def test_a_sum_with_something_between_is_not_joined(sums, arguments):
    blocks = make_blocks(**arguments)
    x = torch.randn(2, 5, 8)
    expected = one_by_one(blocks)(x)
    assert_close(blocks(x), expected, "output", 1e-6)
    assert not set(sums) & {block.norm for block in blocks}


def make_block_with_positions():
    torch.manual_seed(0)
    return Block(8, nn.Linear(8, 8), nn.Linear(8, 8), position=ConditionalPosition(8), position2=ConditionalPosition(8))


def plainly(block):
    def run(x):
        x = block.position(x)
        x = block.position2(x + block.mixer(block.norm(x)))
        return x + block.mlp(block.norm2(x))

    return run


def test_conditional_positions_are_joined_with_norms(sums):
    block, x = make_block_with_positions(), torch.randn(2, 3, 5, 8)
    expected = outputs_and_gradients(plainly(block), block, x)
    found = outputs_and_gradients(block, block, x)
    assert sums == [block.norm, block.norm2]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, "result", 1e-6)


@pytest.mark.parametrize("part", ["position", "norm"])
def test_a_position_that_somebody_sees_is_not_joined(sums, part):
    block, x = make_block_with_positions(), torch.randn(2, 3, 5, 8)
    getattr(block, part).register_forward_hook(lambda module, inputs, output: 2 * output)
    expected = plainly(block)(x)
    assert_close(block(x), expected, "output", 1e-6)
    assert sums == [block.norm2]


def test_blocks_are_cut_like_any_sequence():
    blocks = make_blocks()
    assert type(blocks[:2]) is Blocks and len(blocks[:2]) == 2
