"""GroupMamba: its mixer, its two heads, and what is pooled for them."""

from functools import partial

import pytest
import timm
import torch
from families import KINDS

from vssm.models.groupmamba import GroupSS2D
from vssm.nn import SS2D
from vssm.scan import ScanOrder, cross

NAME, ARGUMENTS = next(kind for kind in KINDS if kind[0] == "groupmamba_tiny")


def small(**overrides):
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=10, **ARGUMENTS, **overrides)


def one_direction(k, height, width):
    return ScanOrder(cross(height, width).table[k, None], height * width)


def test_groups_are_mixed_as_by_a_mixer_each():
    torch.manual_seed(0)
    together, x = GroupSS2D(4 * 17), torch.randn(2, 5, 7, 4 * 17, requires_grad=True)
    for parameter in together.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    apart, parts = [], x.detach().chunk(4, -1)
    for k in range(4):
        mixer = SS2D(17, conv_bias=True, gated=True, scan_order=partial(one_direction, k))
        state = {name: value.unflatten(0, (4, -1))[k] for name, value in together.state_dict().items()}
        mixer.load_state_dict({name: value.view(mixer.get_parameter(name).shape) for name, value in state.items()})
        apart.append(mixer)
    leaves = [part.requires_grad_() for part in parts]
    expected = torch.cat([mixer(part) for mixer, part in zip(apart, leaves, strict=True)], -1)
    output, weights = together(x), torch.randn(2, 5, 7, 4 * 17)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, torch.cat([leaf.grad for leaf in leaves], -1), rtol=1e-3, atol=1e-4)
    for name, parameter in together.named_parameters():
        wanted = torch.cat([mixer.get_parameter(name).grad.flatten() for mixer in apart])
        torch.testing.assert_close(parameter.grad.flatten(), wanted, rtol=1e-3, atol=1e-4, msg=name)


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
