"""Train a model for many steps in half precision on the embedded set, and stop at the first number that is not one.

    python tests/models/long_training.py vim_tiny --dtype float16 --steps 2000

Too long for the suite, which trains 30 steps (test_gpu.py). Images lie on the device; the rate is five times that of
the published recipes, 0.001 for 1024 images at once, so that weights move as far as in a longer training. Gradients
are clipped as there.
"""

import argparse
import time
from pathlib import Path

import timm
import torch
from torchvision.io import decode_image
from torchvision.transforms.v2.functional import normalize, to_dtype

import vssm  # noqa: F401
from vssm.data import ensure_shapes


def load_images(root: Path, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """512 images of 224 pixels, normalised, and their kinds."""
    folder = ensure_shapes(root, train=512, val=10, image_size=224) / "train"
    files = sorted(folder.glob("*/*"))
    kinds = sorted({file.parent.name for file in files})
    images = torch.stack([decode_image(str(file), "RGB") for file in files]).to(device)
    images = normalize(to_dtype(images, torch.float32, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return images, torch.tensor([kinds.index(file.parent.name) for file in files], device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, arguments.dtype)
    images, labels = load_images(arguments.data, device)
    model = timm.create_model(arguments.model, num_classes=10, drop_path_rate=0.1).to(device).train()
    rate = 5e-3 * arguments.batch / 1024
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, fused=device.type == "cuda")
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    start, losses = time.monotonic(), []
    for step in range(1, arguments.steps + 1):
        chosen = torch.randint(len(images), (arguments.batch,), device=device)
        with torch.autocast(device.type, dtype):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        warm_up.step()
        losses.append(loss.detach())
        if step % 100 == 0 or step == arguments.steps:
            recent = torch.stack(losses)
            if not torch.isfinite(recent).all():
                raise SystemExit(f"the loss is not finite at step {step - len(losses) + 1} or soon after")
            if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
                raise SystemExit(f"a weight is not finite at step {step}")
            print(f"{arguments.model} {arguments.dtype} step {step}: loss {recent.mean().item():.3f}, "
                  f"scale {scaler.get_scale():.0f}, {time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
            losses = []


if __name__ == "__main__":
    main()
