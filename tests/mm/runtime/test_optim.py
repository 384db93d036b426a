"""Parameter groups and precision."""

import re

import pytest
import timm
import torch
from families import CLASSES
from mmengine.hooks import EMAHook, Hook

from vssm.errors import ConfigError
from vssm.mm.runtime.config import set_precision
from vssm.mm.runtime.optim import GroupMatcherOptimWrapperConstructor
from vssm.mm.tasks.backbone import VSSMBackbone

OPTIMIZER = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05}


def groups_by_name(model, **paramwise):
    wrapper = GroupMatcherOptimWrapperConstructor({"optimizer": OPTIMIZER}, paramwise or None)(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in wrapper.optimizer.param_groups for p in group["params"]}


def test_parameters_outside_the_backbone_are_trained_too():
    model = torch.nn.ModuleDict(
        {"backbone": timm.create_model("test_vit", num_classes=0), "head": torch.nn.Linear(4, 2)}
    )
    groups = groups_by_name(model, layer_decay=0.9)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert groups["head.weight"]["lr"] == 1e-3


def with_head(**backbone):
    """Stands for a detector: a backbone, and a head whose parameters have names like a backbone's."""
    head = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 2)])})
    return torch.nn.ModuleDict({"blocks": head, "backbone": VSSMBackbone(**backbone)})


every_class = pytest.mark.parametrize(("name", "small"), CLASSES, ids=lambda value: str(value)[:20])


@every_class
@pytest.mark.parametrize("kind", ["classifier", "detector", "detector without output norms"])
def test_layer_decay_follows_the_blocks_of_the_backbone(name, small, kind):
    """The stem and each block are a layer; heads and output norms have the full rate."""
    if kind == "classifier":
        model, prefix = timm.create_model(name, num_classes=3, **small), ""
    else:
        model, prefix = with_head(name=name, output_norm=kind == "detector", **small), "backbone.model."
    groups = groups_by_name(model, layer_decay=0.5)
    assert set(groups) == {n for n, _ in model.named_parameters()}
    backbone = model.get_submodule(prefix.rstrip("."))
    blocks = [n for n, _ in backbone.named_modules() if re.fullmatch(r"(stages\.\d+\.)?blocks\.\d+", n)]
    stem = [n for n, _ in backbone.named_parameters() if re.match(backbone.group_matcher()["stem"], n)]
    for layer, starts in enumerate([tuple(stem), *((f"{block}.",) for block in blocks)]):
        rates = {
            group["lr"] for n, group in groups.items() if n.startswith(tuple(f"{prefix}{start}" for start in starts))
        }
        assert rates == {1e-3 * 0.5 ** (len(blocks) + 1 - layer)}, starts
    full = {n for n, group in groups.items() if group["lr"] == 1e-3}
    if kind == "classifier":
        assert full and all(n.startswith(("head.", "norm.", "fc_norm.")) for n in full)
    else:
        assert full == {n for n in groups if n.startswith("blocks.") or "outnorm" in n}


@every_class
@pytest.mark.parametrize("layer_decay", [None, 0.9])
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_weight_decay_follows_the_backbone(name, small, layer_decay, kind):
    if kind == "classifier":
        model, prefix = timm.create_model(name, num_classes=3, **small), ""
    else:
        model, prefix = with_head(name=name, **small), "backbone.model."
    groups = groups_by_name(model, layer_decay=layer_decay)
    listed = {f"{prefix}{n}" for n in model.get_submodule(prefix.rstrip(".")).no_weight_decay()}
    assert listed <= set(groups) and any(n.endswith((".D", ".A_log")) for n in listed)
    for n, parameter in model.named_parameters():
        assert groups[n]["weight_decay"] == (0.0 if parameter.ndim <= 1 or n in listed else 0.05), n


def test_frozen_parameters_are_in_no_group():
    model = with_head(name="vmamba_tiny", dims=(16, 32), depths=(1, 1), frozen_stages=1)
    groups = groups_by_name(model, layer_decay=0.5)
    assert set(groups) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert groups["backbone.model.stages.1.blocks.0.norm.weight"]["lr"] == 5e-4


def test_options_that_would_be_ignored_are_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="paramwise_cfg has custom_keys; expected layer_decay alone"):
        groups_by_name(model, custom_keys={"norm": {"decay_mult": 0.0}})
    with pytest.raises(ConfigError, match=r"needs a model with layers .* Linear has none"):
        groups_by_name(model, layer_decay=0.9)
    with pytest.raises(ConfigError, match="no lr"):
        GroupMatcherOptimWrapperConstructor({"optimizer": {"type": "AdamW"}}, {"layer_decay": 0.9})


def test_bfloat16_on_this_machine(make_runner):
    runner = make_runner(optim_wrapper__type="Bfloat16OptimWrapper", train_cfg__max_epochs=1)
    seen = []
    runner.model.backbone.blocks[0].attn.qkv.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    runner.train()
    assert torch.bfloat16 in seen
    assert all(parameter.dtype == torch.float32 for parameter in runner.model.parameters())


def test_compiling_leaves_names_as_they_are(make_runner):
    runner = make_runner(compile={"backend": "eager"}, train_cfg__max_epochs=1)
    names = list(runner.model.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    runner.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert list(runner.model.state_dict()) == names


def test_accumulation_steps_every_other_time(make_runner):
    runner = make_runner(optim_wrapper__accumulative_counts=2, train_cfg__max_epochs=1)
    runner.train()
    steps = {int(state["step"]) for state in runner.optim_wrapper.optimizer.state.values()}
    assert steps == {2}


class Average(Hook):
    """The average with momentum 0.25 after each second step; the first one is a copy, as mmengine has it."""

    def __init__(self, weights):
        self.weights = weights

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for average, parameter in zip(self.weights, runner.model.parameters(), strict=True):
            if runner.iter % 2:
                average.lerp_(parameter.detach(), 1.0 if runner.iter == 1 else 0.25)


def test_automatic_rate_follows_the_batch(make_runner):
    runner = make_runner(auto_scale_lr={"base_batch_size": 16, "enable": True}, train_cfg__max_epochs=1)
    runner.train()
    assert {group["lr"] for group in runner.optim_wrapper.optimizer.param_groups} == {5e-4}


def test_automatic_rate_follows_the_batches_that_are_accumulated(make_runner):
    runner = make_runner(
        auto_scale_lr={"base_batch_size": 16, "enable": True},
        optim_wrapper__accumulative_counts=4,
        train_cfg__max_epochs=1,
    )
    runner.train()
    assert {group["lr"] for group in runner.optim_wrapper.optimizer.param_groups} == {2e-3}


def test_weights_are_averaged_as_often_as_they_change(make_runner):
    """In eight steps of which each second one changes them, as in four of twice the batch."""
    averages = {"type": "EMAHook", "momentum": 0.25}
    runner = make_runner(optim_wrapper__accumulative_counts=2, default_hooks__ema=averages)
    weights = [parameter.detach().clone() for parameter in runner.model.parameters()]
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    runner.register_hook(Average(weights))
    runner.train()
    for own, expected in zip(hook.ema_model.module.parameters(), weights, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_resumes_on_a_gpu(make_runner, small_config, amp):
    """Two epochs at once, and one epoch that is resumed for another."""
    set_precision(small_config, amp)
    small_config.model.data_preprocessor = {
        "type": "ClassificationPreprocessor",
        "mixup": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_classes": 10},
    }
    whole = make_runner()
    whole.train()
    make_runner(train_cfg__max_epochs=1, work_dir=f"{small_config.work_dir}/parts").train()
    parts = make_runner(train_cfg__max_epochs=2, resume=True)
    parts.train()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-2, atol=1e-3, msg=name)
