"""Two processes train as one process does with the same total batch."""

from functools import partial

import pytest
import torch
from forked import train_in_two
from small_training import ROOT, logged

# What is random for each image or each process is off; the order of the images is the same.
PLAIN = [
    "model.backbone.drop_path_rate=0.0",
    "model.data_preprocessor.mixup=None",
    "train_dataloader.num_workers=0",
    "train_dataloader.dataset.transform.is_training=False",
    "train_dataloader.dataset.transform.auto_augment=None",
    "train_cfg.max_epochs=2",
]


SCORES = {"loss", "accuracy/top1"}
SENDER = """
import os, signal, time
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from vssm.mm.runtime.signals import InterruptHook

@HOOKS.register_module()
class SendToSecond(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4 and get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            (watch,) = [hook.watch for hook in runner.hooks if isinstance(hook, InterruptHook)]
            while not watch.received:  # by the thread that takes it
                time.sleep(0.01)
"""


def by_torchrun(start, folder, *arguments):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, ROOT / "tools/train.py")
    done = start(*launch, *arguments, "--launcher", "pytorch")
    return [done.returncode], done.stderr


def train_as_one_and_as_two(run, in_two, config, tmp_path):
    """Two processes, of which one gets a signal, stop at one step; one process goes on to where one alone comes."""
    tool, one, two = ROOT / "tools/train.py", tmp_path / "one", tmp_path / "two"
    options = ("--cfg-options", *PLAIN, "train_dataloader.batch_size=8")
    done = run(tool, config, "--work-dir", one, *options)
    assert done.returncode == 0, done.stderr
    expected = [values for values in logged(one) if SCORES & values.keys()]
    assert len(expected) == 8 + 2

    (tmp_path / "sender.py").write_text(SENDER)
    sending = tmp_path / "sending.py"
    sending.write_text(
        f"_base_ = {str(config)!r}\nimport sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "custom_imports = dict(imports=['vssm.mm', 'sender'])\n"
        "default_hooks = dict(send=dict(type='SendToSecond'))\n"
    )
    halves = ("--cfg-options", *PLAIN, "train_dataloader.batch_size=4")
    codes, told = in_two(tmp_path, sending, "--work-dir", two, *halves)
    assert all(codes)
    assert told.count("stopped by SIGTERM after step 5: saved to") == 2, told
    assert torch.load(two / "interrupted.pth", weights_only=True)["meta"]["iter"] == 5

    done = run(tool, config, "--work-dir", two, "--resume", *options)
    assert done.returncode == 0, done.stderr
    assert "2 processes, now 1" in done.stdout + done.stderr
    found = [values for values in logged(two) if SCORES & values.keys()]
    assert len(found) == len(expected)
    for values, others in zip(found, expected, strict=True):
        for name in SCORES & values.keys():
            assert values[name] == pytest.approx(others[name], abs=2e-5), values
    ends = [torch.load(path / "epoch_2.pth", weights_only=True)["state_dict"] for path in (one, two)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_train_as_one(run, start, config, tmp_path):
    run = partial(start, CUDA_VISIBLE_DEVICES="") if torch.cuda.is_available() else run
    train_as_one_and_as_two(run, train_in_two, config, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(run, start, config, tmp_path):
    train_as_one_and_as_two(run, partial(by_torchrun, start), config, tmp_path)


def test_launcher_that_did_not_start_the_process(train, tmp_path):
    done = train("--work-dir", tmp_path / "work", "--launcher", "pytorch")
    assert done.returncode == 1
    assert "torchrun" in done.stderr and "Traceback" not in done.stderr
