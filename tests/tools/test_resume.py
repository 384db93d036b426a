"""A training that was killed and resumed ends with the same weights and loss."""

import os
import signal
from pathlib import Path

import torch
from small_training import ROOT, logged

KILLER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillAtStep(Hook):
    def __init__(self, step):
        self.step = step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def losses(work_dir: Path) -> dict[int, float]:
    """The last logged loss of each step."""
    return {values["step"]: values["loss"] for values in logged(work_dir) if "loss" in values}


def test_resume_after_kill_in_the_middle_of_an_epoch(train, run, config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = train("--work-dir", whole)
    assert done.returncode == 0, done.stderr

    (tmp_path / "killer.py").write_text(KILLER)
    killing = tmp_path / "killing.py"
    killing.write_text(
        f"_base_ = {str(config)!r}\n"
        "custom_imports = dict(imports=['vssm.mm', 'killer'])\n"
        "default_hooks = dict(kill=dict(type='KillAtStep', step=10))\n"
    )
    search = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels")))
    done = run(ROOT / "tools/train.py", killing, "--work-dir", killed, PYTHONPATH=search)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (killed / "epoch_3.pth").exists()

    done = train("--work-dir", killed, "--resume")
    assert done.returncode == 0, done.stderr
    ends = [torch.load(path / "epoch_3.pth", weights_only=True) for path in (whole, killed)]
    for part in ("state_dict", "ema_state_dict"):
        for name, value in ends[0][part].items():
            torch.testing.assert_close(ends[1][part][name], value, rtol=0, atol=1e-6, msg=f"{part} {name}")
    expected, resumed = losses(whole), losses(killed)
    assert sorted(expected) == sorted(resumed) == list(range(1, 13))
    torch.testing.assert_close(torch.tensor(resumed[12]), torch.tensor(expected[12]), rtol=0, atol=1e-5)
