"""The table of bad inputs: command line, exit code, and a regular expression for its last sentence.

Rows begin with the name of a command of `vssm.cli`. Files are those that `make_files` writes.
"""

import os
from pathlib import Path

import timm
import torch
from PIL import Image
from small_training import write_config

# Exit code 2: argparse refuses the option. 1: the tool refuses what it finds.
COMMANDS = [
    *(
        (f"visualize orders --grid {height} {width}", 2, r"--grid: takes a whole number from 1 to .*, but got '")
        for height, width in ((0, 4), (-1, 4), ("x", 4), ("nan", 4), (2.5, 4), (4, "1e3"), (4, "9" * 30))
    ),
    ("visualize orders --grid 100000 2", 1, r"--grid 100000 2 is too large"),
    ("visualize orders --grid 127 127", 1, r"at most 128 tokens a side and 4096 in all"),
    ("visualize orders raster --grid 2 2 --out done", 1, r"done/raster\.png exists already.*--overwrite"),
    ("visualize orders raster --out photo.png", 1, r"photo\.png cannot be written"),
    ("visualize orders spirall", 1, r"no scan order is named 'spirall'; known: "),
    ("visualize orders windows(0)", 1, r"windows\(0\): expected a whole number from 1 to 1024"),
    ("visualize orders windows(-1)", 1, r"'-1' is not a whole number"),
    ("visualize orders windows(999999999)", 1, r"from 1 to 1024"),
    ("visualize orders atrous(65)", 1, r"from 1 to 64"),
    ("visualize orders windows(x)", 1, r"'x' is not a whole number"),
    ("visualize orders raster(3)", 1, r"takes no number"),
    ("visualize orders ../raster", 1, r"does not name a scan order"),
    *(
        (f"visualize erf --model test_vit --images {count}", 2, r"--images: takes a whole number")
        for count in (0, -3, "x", "nan", 1.5)
    ),
    ("visualize erf --out e.png", 1, r"which model\? Name it with --model"),
    ("visualize erf --model vim_tinny --out e.png", 1, r"did you mean vim_tiny"),
    ("visualize erf --model test_vit --out photo.png", 1, r"photo\.png exists already"),
    ("visualize erf --model test_vit --out e.txt", 1, r"no picture is written as \.txt"),
    ("visualize erf --model test_vit --checkpoint absent.pth --out e.png", 1, r"there is no checkpoint at absent\.pth"),
    *(
        (f"visualize attention --model vim_tiny --place {place} 0.5", 2, r"--place: takes a number from 0 to 1")
        for place in ("nan", "inf", 1.5, "x", "1e9")
    ),
    ("visualize attention --model vim_tiny --layer x", 2, r"--layer: invalid int value"),
    (
        "visualize attention --model vim_tiny --image photo.png --out photo.png --overwrite",
        1,
        r"photo\.png would overwrite an input of this command",
    ),
    ("visualize attention --model vim_tiny --checkpoint nan.pth --out nan.pth", 1, r"no picture is written as \.pth"),
    ("visualize attention --model test_vit --image photo.png --layer 99 --out e.png", 1, r".+"),
    ("visualize paint", 2, r"invalid choice: 'paint'"),
    *(
        (f"predict photo.png --model test_vit --batch {count}", 2, r"--batch: takes a whole number from 1 to")
        for count in (0, -1, "x", "inf", 1.5, "9" * 30)
    ),
    *(
        (f"predict photo.png --model test_vit --checkpoint {name} --out new.png", 1, told)
        for name, told in (
            ("nan.pth", r"nan\.pth holds NaN, infinite or complex values, nothing was loaded: 1 of \d+ weights"),
            ("inf.pth", r"inf\.pth holds NaN, infinite or complex values"),
            ("complex.pth", r"complex\.pth holds NaN, infinite or complex values"),
            ("texts.pth", r"texts\.pth holds no weights: expected a dict of tensors"),
            ("list.pth", r"list\.pth holds a list; expected a dict with the weights"),
            ("number.pth", r"number\.pth holds a int; expected a dict"),
            ("empty.pth", r"empty\.pth holds no weights"),
            ("numbered.pth", r"numbered\.pth holds no weights|names that are no text"),
            ("zero.pth", r"zero\.pth was not loaded: it is damaged, incomplete or no checkpoint"),
            ("truncated.pth", r"truncated\.pth was not loaded: it is damaged"),
            ("photo.png", r"photo\.png was not loaded"),
            ("absent.pth", r"there is no checkpoint at absent\.pth"),
            ("done", r"done was not loaded: it is a folder"),
            ("object.pth", r"object\.pth was not loaded: it holds Python objects"),
            ("pipe", r"pipe was not loaded: it is a named pipe"),
            ("other.pth", r"other\.pth does not fit VisionTransformer, nothing was loaded"),
            ("shapes.pth", r"shapes\.pth does not fit VisionTransformer, nothing was loaded: .*misshapen"),
            ("absent.safetensors", r"there is no checkpoint at"),
            ("text.safetensors", r"text\.safetensors was not loaded"),
            *((f"meta_{kind}.pth", rf"meta_{kind}\.pth") for kind in range(8)),
        )
    ),
    (
        "predict photo.png --model test_vit --checkpoint good.pth --out photo.png",
        1,
        r"photo\.png would overwrite an in",
    ),
    (
        "predict photo.png --model test_vit --checkpoint good.pth --out photo.png --overwrite",
        1,
        r"photo\.png would overwrite an input",
    ),
    ("predict photo.png --model test_vit --checkpoint good.pth --out old.png", 1, r"old\.png exists already"),
    ("predict photo.png --model test_vit --checkpoint good.pth --out result.png", 1, r"result\.json exists already"),
    ("predict photo.png --model test_vit --checkpoint good.pth --out done", 1, r"done is a folder"),
    ("predict photo.png --model test_vit --checkpoint good.pth --out a.pdf", 1, r"no picture is written as \.pdf"),
    ("predict photo.png --model test_vit --checkpoint good.pth --out photo.png/a.png", 1, r"cannot be written"),
    ("predict photo.png --model test_vit --checkpoint good.pth --labels two.txt --out n.png", 1, r"there are 2 labels"),
    (
        "predict photo.png --model test_vit --checkpoint good.pth --labels done --out n.png",
        1,
        r"no file of labels done",
    ),
    ("predict photo.png --model test_vit --checkpoint good.pth --labels photo.png --out n.png", 1, r"no text in UTF-8"),
    ("predict photo.png --model test_vit --checkpoint good.pth --device gpu --out n.png", 1, r"--device gpu: expected"),
    (
        "predict photo.png --model test_vit --checkpoint good.pth --device meta --out n.png",
        1,
        r"--device meta cannot be",
    ),
    ("predict photo.png --out n.png", 1, r"which model\?"),
    ("predict photo.png --model vim_tinny --out n.png", 1, r"did you mean vim_tiny"),
    ("predict photo.png --model absent.py --out n.png", 1, r"there is no configuration file absent\.py"),
    ("predict done/*.jpg --model test_vit --out n.png", 1, r"there are no images in done/\*\.jpg"),
    *(
        (f"predict {name} --model test_vit --checkpoint good.pth --overwrite --out bad_{name}.png", 1, told)
        for name, told in (
            ("absent.png", r"absent\.png cannot be read as an image"),
            ("text.png", r"text\.png cannot be read as an image"),
            ("oblong.png", r"oblong\.png cannot be read as an image: 1 x 2000 pixels are too oblong"),
            ("pipe", r"pipe cannot be read as an image: it is a named pipe"),
            ("zero.png", r"zero\.png cannot be read as an image"),
        )
    ),
    *(
        (f"train small.py --cfg-options {option}", 1, told)
        for option, told in (
            ("train_cfg.max_epochs=0", r"train_cfg\.max_epochs is 0; expected a whole number from 1"),
            ("train_cfg.max_epochs=-1", r"max_epochs is -1"),
            ("train_cfg.max_epochs=many", r"max_epochs is 'many'"),
            ("train_cfg.max_epochs=1.5", r"max_epochs is 1\.5"),
            ("train_cfg.val_interval=0", r"val_interval is 0"),
            ("train_dataloader.batch_size=0", r"train_dataloader\.batch_size is 0"),
            ("train_dataloader.batch_size=-8", r"batch_size is -8"),
            ("train_dataloader.batch_size=x", r"batch_size is 'x'"),
            ("val_dataloader.batch_size=0", r"val_dataloader\.batch_size is 0"),
            ("train_dataloader.num_workers=-1", r"num_workers is -1; expected a whole number from 0"),
            ("optim_wrapper.optimizer.lr=nan", r"optimizer\.lr is nan; expected"),
            ("optim_wrapper.optimizer.lr=-1", r"optim_wrapper\.optimizer\.lr is -1; expected a number from 0"),
            ("optim_wrapper.optimizer.lr=fast", r"lr is 'fast'"),
            ("optim_wrapper.optimizer.weight_decay=-0.1", r"weight_decay is -0\.1"),
            ("optim_wrapper.optimizer.betas=(0.9,1.5)", r"betas is \(0\.9, 1\.5\)"),
            ("optim_wrapper.accumulative_counts=0", r"accumulative_counts is 0"),
            ("randomness.seed=-1", r"randomness\.seed is -1"),
            ("param_scheduler.type=CosineAnnealingLR param_scheduler.T_max=0", r"param_scheduler\.T_max is 0"),
            ("train_cfg.max_epochs=[1", r"max_epochs is '\[1'"),
            ("default_hooks.checkpoint.interval=0", r"checkpoint\.interval is 0; expected a whole number from 1"),
            ("default_hooks.checkpoint.max_keep_ckpts=x", r"max_keep_ckpts is 'x'"),
            (
                "default_hooks.checkpoint.rule=x",
                r"the hook PlainCheckpointHook cannot run: KeyError: 'rule must be great",
            ),
            (
                "default_hooks.checkpoint.save_best=nokey",
                r"save_best is 'nokey', and the evaluation gives accuracy/top1",
            ),
            ("default_hooks.logger.interval=-1", r"default_hooks cannot be built, LoggerHook refuses.* greater than 0"),
            ("default_hooks.logger.priority=9999", r"default_hooks cannot be built: .*between 0 and 100"),
            (
                "default_hooks.ema.type=EMAHook default_hooks.ema.momentum=5",
                r"ema\.momentum is 5; expected a number from 0",
            ),
            ("default_hooks.throughput.window=0", r"throughput\.window is 0"),
            ("default_hooks.interrupt.seconds=x", r"interrupt\.seconds is 'x'"),
            ("default_hooks.runtime_info=5", r"default_hooks cannot be built: TypeError: hook should be"),
            ("default_hooks=5", r"default_hooks cannot be built: "),
            ("custom_hooks=[5]", r"custom_hooks cannot be built: TypeError: hook should be"),
            ("log_processor.window_size=0", r"log_processor\.window_size is 0; expected .*, 'epoch' or 'global'"),
            ("val_evaluator=5", r"val_cfg cannot be built|the evaluator cannot be built"),
            ("visualizer=4", r"visualizer cannot be built"),
            ("optim_wrapper.clip_grad=5", r"optim_wrapper cannot be built"),
            ("model=5", r"model cannot be built: TypeError: model should be"),
            ("model.backbone=test_vit", r"model cannot be built, ImageClassifier refuses its arguments"),
            ("model.backbone.img_size=-3", r"model 'test_vit': Expected a positive image size"),
            ("model.label_smoothing=1.5", r"model\.label_smoothing is 1\.5; expected a number from 0 to below 1"),
            ("model.backbone.name=vim_tinny", r"did you mean vim_tiny"),
            ("model.backbone.drop_path_rate=2", r"drop_path_rate is 2; expected a number from 0 to below 1"),
            ("model.backbone.num_classes=-1", r"num_classes is -1; expected a whole number from 0"),
            ("model.backbone.num_classes=ten", r"num_classes is 'ten'; expected a whole number"),
            (
                "model.backbone.name=vim_tiny model.backbone.depth=0",
                r"depth is 0; expected a whole number from 1",
            ),
        )
    ),
    *((f"train small.py --seed {seed}", 2, r"--seed: takes a whole number") for seed in (-1, "x", "nan", 2**40)),
    ("train absent.py", 1, r"there is no configuration file absent\.py"),
    ("train broken.py", 1, r"broken\.py, line 1"),
    ("train divides.py", 1, r"divides\.py cannot be read: ZeroDivisionError"),
    ("train photo.png", 1, r"photo\.png cannot be read"),
    ("train small.py --amp int8", 2, r"--amp: invalid choice"),
    ("train small.py --cfg-options a", 2, r"takes KEY=VALUE"),
    ("train small.py --resume absent.pth", 1, r"there is no checkpoint at absent\.pth"),
    ("train small.py --resume nan.pth", 1, r"nan\.pth"),
    ("test small.py absent.pth", 1, r"there is no checkpoint at absent\.pth"),
    ("test small.py nan.pth", 1, r"nan\.pth holds NaN|nan\.pth does not fit"),
    ("test small.py texts.pth", 1, r"texts\.pth holds no weights"),
    *((f"compare small.py --parallel {count}", 2, r"--parallel: takes a whole number") for count in (0, -1, "x")),
    *((f"compare small.py --seeds {seed}", 2, r"--seeds: takes a whole number") for seed in (-1, "x", 1.5)),
    ("compare absent.py", 1, r"there is no configuration file absent\.py"),
    ("compare small.py", 1, r"small\.py has no option"),
    *(
        (f"benchmark models test_vit --batch {count}", 2, r"--batch: takes a whole number")
        for count in (0, -1, "x", "nan")
    ),
    *(
        (f"benchmark models test_vit --sizes {size}", 2, r"--sizes: takes a whole number")
        for size in (0, -1, "x", 10**6)
    ),
    ("benchmark models test_vit --csv old.csv", 1, r"--csv: old\.csv exists already.*--overwrite"),
    ("benchmark models test_vit --plot old.png", 1, r"--plot: old\.png exists already"),
    ("benchmark models test_vit --csv done", 1, r"done is a folder"),
    ("benchmark heads small.py --csv small.py --overwrite", 1, r"small\.py would overwrite an input"),
    ("benchmark models test_vit --device gpu", 2, r"--device gpu: expected cpu"),
    ("benchmark models vitt --batch 1", 1, r"vitt"),
    ("benchmark kernels --batch 0", 2, r"--batch: takes a whole number"),
    ("benchmark kernels --cases none", 2, r"invalid choice: 'none'"),
    ("benchmark kernels --orders windows(0)", 2, r"expected a whole number from 1"),
    ("benchmark kernels --backends cobol --cases vim_tiny", 2, r"unknown kernel backend 'cobol'; known: "),
    ("benchmark heads absent.py", 1, r"there is no configuration file"),
    ("benchmark heads small.py --size 0 4", 2, r"--size: takes a whole number"),
]

# Arguments of models: values that each of these names refuses.
ARGUMENTS = {
    "in_chans": (0, -1, 1.5, "x", float("nan"), True, 10**9),
    "num_classes": (-1, 1.5, "x", float("nan"), 10**12),
    "dims": ((), (0, 8), (8, "x"), "ab", 8, (8, 8, 8)),
    "depths": ((0, 1), (1,), (-1, 1), (1.5, 1), "ab"),
    "heads": ((0, 1), (1,), (-1, 1), (1.5, 1), "ab", 4),
    "drop_rate": (-0.1, 1, 1.5, float("nan"), float("inf"), "x"),
    "drop_path_rate": (-0.1, 1, 2, float("nan"), "0.1"),
    "expansion": (0, -1, float("nan"), float("inf"), "x", 10**9, 1e-3),
    "mlp_ratio": (-1, "x", 10**9, 1e-3),
    "state": (0, -1, 1.5, "x", 10**9),
    "global_pool": ("x", 1, ["avg"]),
    "device": ("gpu", 1.5),
    "dtype": ("float32", 32),
}

_META = (None, 5, "text", [1], {"backbone": 5}, {"backbone": {"name": 3}}, {"backbone": []}, {"backbone": {}})


class Unknown:
    """Of no class that a checkpoint may hold."""


def make_files(root: Path, shapes: Path) -> None:
    """Write all files that the table names, and some that nothing may change."""
    weights = timm.create_model("test_vit").state_dict()
    name = next(iter(weights))
    files = {
        "good": weights,
        "nan": {**weights, name: torch.full_like(weights[name], float("nan"))},
        "inf": {**weights, name: torch.full_like(weights[name], float("inf"))},
        "complex": {**weights, name: weights[name].to(torch.complex64)},
        "texts": dict.fromkeys(weights, "text"),
        "list": [1, 2],
        "number": 3,
        "empty": {},
        "numbered": dict(enumerate(weights.values())),
        "object": {"model": Unknown()},
        "other": {"weight": torch.zeros(1)},
        "shapes": {**weights, name: torch.zeros(3)},
        **{f"meta_{kind}": {"message_hub": {}, "meta": meta, "state_dict": 3} for kind, meta in enumerate(_META)},
    }
    for stem, content in files.items():
        torch.save(content, root / f"{stem}.pth")
    (root / "truncated.pth").write_bytes((root / "good.pth").read_bytes()[:2000])
    for stem in ("zero.pth", "zero.png"):
        (root / stem).touch()
    for stem in ("text.png", "text.safetensors", "old.csv", "result.json"):
        (root / stem).write_text("of the user")
    (root / "two.txt").write_text("one\ntwo\n")
    (root / "broken.py").write_text("model = (")
    (root / "divides.py").write_text("model = 1 / 0")
    for stem, size in (("photo.png", (40, 30)), ("old.png", (4, 4)), ("oblong.png", (1, 2000))):
        Image.new("RGB", size, (200, 20, 20)).save(root / stem)
    (root / "done").mkdir()
    Image.new("RGB", (4, 4)).save(root / "done/raster.png")
    os.mkfifo(root / "pipe")
    write_config(root / "small.py", shapes)
