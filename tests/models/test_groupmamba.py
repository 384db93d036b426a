"""GroupMamba: its two heads, and what is pooled for them."""

import pytest
import timm
import torch
from families import KINDS

NAME, ARGUMENTS = next(kind for kind in KINDS if kind[0] == "groupmamba_tiny")


def small(**overrides):
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=10, **ARGUMENTS, **overrides)


def test_the_pair_comes_out_only_in_distilled_training():
    model, x = small(), torch.randn(2, 3, 32, 48)
    assert isinstance(model.train()(x), torch.Tensor)
    model.set_distilled_training()
    with torch.no_grad():
        pair = model(x)
        token = model.forward_head(model.forward_features(x), pre_logits=True)
        heads = model.get_classifier()
    assert isinstance(model.eval()(x), torch.Tensor)
    assert [logits.shape for logits in pair] == [(2, 10), (2, 10)] and not torch.equal(*pair)
    assert token.shape == (2, model.num_features) and heads == (model.head.fc, model.head.fc_dist)


def test_a_pool_that_widens_the_token_is_refused():
    with pytest.raises(ValueError, match="global_pool is 'catavgmax', which makes 168 channels of 84"):
        small(global_pool="catavgmax")


def test_directions_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="64 directions and a stage 48 channels; expected a divisor"):
        small(scan_order="atrous(8)")
