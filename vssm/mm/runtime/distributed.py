"""Several processes: one per GPU with NCCL, or several on the CPU with gloo."""

import os
import signal

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed
from torch import nn

from vssm.errors import ConfigError
from vssm.processes import available_cores, die_with_parent

# The variable in which each launcher passes a process its rank on its machine.
LOCAL_RANK = {"pytorch": "LOCAL_RANK", "slurm": "SLURM_LOCALID", "mpi": "OMPI_COMM_WORLD_LOCAL_RANK"}
LOCAL_SIZE = {"pytorch": "LOCAL_WORLD_SIZE", "slurm": "SLURM_NTASKS_PER_NODE", "mpi": "OMPI_COMM_WORLD_LOCAL_SIZE"}


def start_processes(launcher: str, config: Config) -> None:
    """Join the processes that a launcher started, and divide the machine's cores among them.

    Args:
        launcher: "none", "pytorch" (torchrun), "slurm" or "mpi".
        config: its ``env_cfg.dist_cfg`` is passed on; where there is no GPU, ``model_wrapper_cfg`` is set for the CPU.

    Raises:
        ConfigError: the process was not started by that launcher, or there are more processes than GPUs.
    """
    if launcher != "none" and LOCAL_RANK[launcher] not in os.environ:
        start = {"pytorch": "torchrun --nproc-per-node 2", "slurm": "srun", "mpi": "mpirun"}[launcher]
        raise ConfigError(
            f"--launcher {launcher}: this process was not started by it ({LOCAL_RANK[launcher]} is not set); "
            f"start with: {start} tools/train.py ..."
        )
    local_size = int(os.environ.get(LOCAL_SIZE.get(launcher, ""), 1))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // local_size))
    if launcher == "none" or is_distributed():
        return
    if launcher == "pytorch":
        die_with_parent(os.getppid(), signal.SIGTERM)  # torchrun leaves its processes behind when it is killed
    local_rank = int(os.environ[LOCAL_RANK[launcher]])
    os.environ["LOCAL_RANK"] = str(local_rank)
    if not torch.cuda.is_available():
        _start_on_cpu(launcher, config)
    elif local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
            "start as many processes as GPUs"
        )
    else:
        init_dist(launcher, **config.get("env_cfg", {}).get("dist_cfg", {}))


def _start_on_cpu(launcher: str, config: Config) -> None:
    """mmengine's launchers select a GPU first. gloo needs only torchrun's variables."""
    if launcher != "pytorch":
        raise ConfigError(f"--launcher {launcher} needs GPUs, and there is none here: use torchrun on the CPU")
    torch.distributed.init_process_group("gloo")
    config.model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside wrappers: of several processes, of test-time augmentation."""
    while hasattr(model, "module"):
        model = model.module
    return model
