"""A training that takes seconds: timm's test_vit on 32 images of the embedded set, four steps an epoch."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = """
_base_ = {base!r}
_set = dict(type='ShapesDataset', root={data!r}, train=32, val=20, image_size=32, seed=0,
            transform=dict(type='TimmTransform', input_size=32))
model = dict(type='ImageClassifier', backbone=dict(name='test_vit', num_classes=10, img_size=32))
train_dataloader = dict(
    batch_size=8, num_workers=0, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', **_set))
val_dataloader = dict(
    batch_size=10, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(split='val', **_set))
test_dataloader = val_dataloader
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(
    constructor='GroupMatcherOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
default_hooks = dict(logger=dict(interval=1))
"""


def write_config(path: Path, data: Path, more: str = "") -> Path:
    """Write the training's configuration, with more lines of Python at its end."""
    base = str(ROOT / "configs/_base_/default_runtime.py")
    path.write_text(CONFIG.format(base=base, data=str(data)) + more)
    return path


def logged(work_dir: Path) -> list[dict[str, float]]:
    """What a training has logged, in the order of its starts."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]
