"""Deterministic weights and inputs for cross-implementation parity.

A reference model and a re-implementation are filled with the same values, each
value derived from the *reference* parameter name alone, so no checkpoint has to
be shipped: a record holds only names, shapes and the outputs seen.
"""

import zlib

import numpy as np
import torch


def tensor_for(name: str, shape) -> torch.Tensor:
    """The value of the reference tensor `name` of `shape`, float32."""
    shape = tuple(int(s) for s in shape)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    n = rng.standard_normal(shape if shape else (1,))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.long)
    if leaf == "running_var":
        v = 1.0 + 0.1 * np.abs(n)
    elif leaf == "running_mean":
        v = 0.1 * n
    elif leaf.startswith("A_") or leaf in ("A_log", "A_logs"):
        # log of 1..d_state along the last axis, lightly perturbed
        if len(shape) >= 2:
            v = np.log(np.arange(1, shape[-1] + 1, dtype=np.float64)) + 0.1 * n
        else:
            v = np.log(1.0 + 15.0 * rng.random(shape))
    elif leaf in ("D", "Ds", "D_b"):
        v = 1.0 + 0.1 * n
    elif leaf in ("dt_projs_bias", "dt_bias") or name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        v = -3.0 + 0.5 * n
    elif len(shape) <= 1:
        v = (1.0 + 0.1 * n) if leaf == "weight" else 0.1 * n
    else:
        fan_in = int(np.prod(shape[1:]))
        v = n / np.sqrt(max(fan_in, 1))
    return torch.from_numpy(np.asarray(v, dtype=np.float32).reshape(shape))


def image(height: int, width: int, batch: int = 1, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """A smooth-ish deterministic image batch, (B, C, H, W) float32."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(rng.standard_normal((batch, channels, height, width)).astype(np.float32))
