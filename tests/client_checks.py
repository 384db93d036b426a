"""Checks of our models in other people's programs: tests/clients.py runs them and writes the table.

A check takes a class of models. It returns nothing where all is well, or the sentence in which a client refuses the
model; anything else that is raised is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timm  # noqa: E402
import torch  # noqa: E402
from families import model_class, shallow  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import vssm  # noqa: E402, F401
from vssm.bench import count_flops, fvcore_handles, ptflops_hooks  # noqa: E402
from vssm.data import TimmTransform  # noqa: E402
from vssm.inference import Predictor  # noqa: E402
from vssm.inference.export import export  # noqa: E402
from vssm.inference.hub import write_repository  # noqa: E402
from vssm.models import HRVMamba, Plain  # noqa: E402
from vssm.ops import standard_operations  # noqa: E402

Kind = tuple[str, dict[str, Any]]
SIDE, CLASS_COUNT = 64, 10


@dataclass(frozen=True)
class Client:
    """A check.

    Args:
        name: of the client, its distribution on the package index.
        module: that has to be installed.
        what: is tried.
        check: raises, or returns the sentence of a refusal.
        slow: it is run by hand alone.
        is_there: whether the client is, beside its module.
        of: what else of it has a version.
    """

    name: str
    module: str
    what: str
    check: Callable[[Kind], str | None]
    slow: bool
    is_there: Callable[[], bool]
    of: Callable[[], str]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None and self.is_there()

    @property
    def version(self) -> str:
        return metadata.version(self.name) + self.of()


CLIENTS: list[Client] = []


def client(
    name: str,
    what: str,
    module: str = "",
    slow: bool = False,
    is_there: Callable[[], bool] = lambda: True,
    of: Callable[[], str] = lambda: "",
) -> Callable:
    def add(check: Callable[[Kind], str | None]) -> Callable[[Kind], str | None]:
        CLIENTS.append(Client(name, module or name.replace("-", "_"), what, check, slow, is_there, of))
        return check

    return add


def small(kind: Kind, **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(kind[0], **{"num_classes": CLASS_COUNT, **kind[1], **overrides}).eval()


def images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def last_module(model: nn.Module) -> nn.Module:
    return model.get_submodule(model.feature_info[-1]["module"])


def to_map(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """grad-cam's `reshape_transform` for the model's layout, as docs/clients.md gives it."""
    if isinstance(model, HRVMamba):  # its branches are channels-first maps
        return lambda features: features
    if model.output_fmt == "NHWC":
        return lambda features: features.permute(0, 3, 1, 2)
    stride = model.feature_info[-1]["reduction"]
    side = SIDE // stride
    return lambda features: model.patch_tokens(features).transpose(1, 2).unflatten(2, (side, -1))


@client("captum", "IntegratedGradients, LayerGradCam")
def captum(kind: Kind) -> None:
    from captum.attr import IntegratedGradients, LayerGradCam

    model = small(kind)
    assert IntegratedGradients(model).attribute(images(), target=1, n_steps=2).abs().sum() > 0
    LayerGradCam(model, last_module(model)).attribute(images(), target=1)


@client("captum", "LRP")
def captum_lrp(kind: Kind) -> str:
    from captum.attr import LRP

    try:
        LRP(small(kind)).attribute(images(), target=1)
    except TypeError as error:
        return str(error).split(". ")[0].rpartition("of type ")[2].partition(" has ")[2].strip()
    raise AssertionError("LRP has learnt our layers")


@client("grad-cam", "GradCAM with `reshape_transform`", module="pytorch_grad_cam")
def grad_cam(kind: Kind) -> None:
    from pytorch_grad_cam import GradCAM

    model = small(kind)
    transform, seen = to_map(model), []

    def kept(features: Tensor) -> Tensor:
        seen.append(transform(features).shape[1])
        return transform(features)

    cam = GradCAM(model, [last_module(model)], reshape_transform=kept)
    assert cam(images(2), None).shape == (2, SIDE, SIDE)
    assert set(seen) == {model.feature_info[-1]["num_chs"]}


@client("fvcore", "FlopCountAnalysis with `vssm.bench.fvcore_handles`")
def fvcore(kind: Kind) -> None:
    from fvcore.nn import FlopCountAnalysis

    counted = FlopCountAnalysis(small(kind), images()).set_op_handle(**fvcore_handles())
    assert abs(counted.total() / expected_flops(kind) - 1) < 0.06


@client("ptflops", "backend aten with `vssm.bench.ptflops_hooks`")
def ptflops(kind: Kind) -> None:
    from ptflops import get_model_complexity_info

    options = {"as_strings": False, "print_per_layer_stat": False, "verbose": False, "backend": "aten"}
    size = (3, SIDE, SIDE)
    counted, _ = get_model_complexity_info(small(kind), size, custom_modules_hooks=ptflops_hooks(), **options)
    assert abs(counted / expected_flops(kind) - 1) < 0.08


def expected_flops(kind: Kind) -> int:
    model = small(kind, device="meta")
    return count_flops(lambda: model(images().to("meta"))).total


@client("torchvision", "create_feature_extractor with timm's leaf modules")
def feature_extractor(kind: Kind) -> None:
    from timm.models import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor

    model, name, seen = small(kind), small(kind).feature_info[-1]["module"], []
    leaves = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    traced = create_feature_extractor(model, [name], tracer_kwargs={key: list(each) for key, each in leaves.items()})
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images())
    close(traced(images())[name], seen[0])


@client("timm", "create_feature_extractor, save and load a local folder")
def timm_itself(kind: Kind) -> None:
    from timm.models import create_feature_extractor

    model = small(kind)
    create_feature_extractor(model, {model.feature_info[-1]["module"]: "last"})(images())
    written = repository(kind)
    close(timm.create_model(f"local-dir:{written}", pretrained=True).eval()(images()), small(of_file(kind))(images()))


def of_file(kind: Kind) -> Kind:
    """Without functions, which cannot stand in a file."""

    def plain(value: Any) -> bool:
        return all(map(plain, value)) if isinstance(value, list | tuple) else not callable(value)

    return kind[0], {key: value for key, value in kind[1].items() if plain(value)}


def repository(kind: Kind) -> Path:
    folder = Path(tempfile.mkdtemp()) / "mine"
    labels = [f"kind {number}" for number in range(CLASS_COUNT)]
    write_repository(Predictor(small(of_file(kind)), TimmTransform(SIDE), labels, {"name": kind[0]}), folder, "mit")
    return folder


@client("transformers", "TimmWrapper: from_pretrained, save_pretrained, pipeline")
def timm_wrapper(kind: Kind) -> None:
    from PIL import Image
    from transformers import AutoModelForImageClassification, pipeline

    written, again, model = repository(kind), Path(tempfile.mkdtemp()), small(of_file(kind))
    wrapped = AutoModelForImageClassification.from_pretrained(written).eval()
    close(wrapped(images()).logits, model(images()))
    wrapped.save_pretrained(again)
    close(AutoModelForImageClassification.from_pretrained(again).eval()(images()).logits, model(images()))
    image = Image.effect_noise((90, 70), 100).convert("RGB")
    found = pipeline("image-classification", model=str(written), device="cpu", top_k=1)(image)[0]
    best = model(TimmTransform(SIDE)(image)[None]).argmax(1).item()
    assert found["label"] == f"kind {best}"


@client("transformers", "TimmBackbone")
def timm_backbone(kind: Kind) -> None:
    from transformers import TimmBackbone, TimmBackboneConfig

    config = TimmBackboneConfig(backbone=kind[0], use_pretrained_backbone=False, out_indices=[-1])
    assert TimmBackbone(config).eval()(images()).feature_maps[0].dim() == 4


@client("transformers", "Trainer, one step", slow=True)
def trainer(kind: Kind) -> None:
    from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

    model = AutoModelForImageClassification.from_pretrained(repository(kind))
    data = [{"pixel_values": image, "labels": 1} for image in images(4)]
    where = {"output_dir": tempfile.mkdtemp(), "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    done = Trainer(model, TrainingArguments(max_steps=1, **where), train_dataset=data).train()
    assert done.training_loss > 0


@client("peft", "LoRA of all linear layers")
def peft(kind: Kind) -> None:
    from peft import LoraConfig, get_peft_model

    model = small(kind)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    adapted = get_peft_model(model, LoraConfig(target_modules=linear, r=2))
    adapted(images()).logsumexp(1).sum().backward()
    assert any("lora_" in name and weight.grad.abs().sum() > 0 for name, weight in adapted.named_parameters()
               if weight.grad is not None)  # fmt: skip


@client("segmentation-models-pytorch", "Unet, FPN and UPerNet of `tu-NAME`")
def smp_pyramids(kind: Kind) -> str | None:
    import segmentation_models_pytorch as smp

    plain = issubclass(model_class(kind[0]), Plain)
    sizes = {} if plain else kind[1]  # "depth" means another thing there
    try:
        for decoder in (smp.Unet, smp.FPN, smp.UPerNet):
            segmentor = decoder(f"tu-{kind[0]}", encoder_weights=None, classes=3, **sizes).eval()
            assert segmentor(images()).shape == (1, 3, SIDE, SIDE)
    except ValueError as error:
        if plain:
            return str(error)
        raise
    return None


@client("segmentation-models-pytorch", "DPT of `tu-NAME`")
def smp_dpt(kind: Kind) -> None:
    import segmentation_models_pytorch as smp

    assert smp.DPT(f"tu-{kind[0]}", encoder_weights=None, classes=3).eval()(images()).shape == (1, 3, SIDE, SIDE)


@client("torch", "FSDP2: reset_parameters and weights after the meta device")
def fsdp(kind: Kind) -> None:
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=0, world_size=1)
    try:
        sharded, model = small(kind, device="meta"), small(kind)
        fully_shard(sharded)
        sharded.to_empty(device="cpu")
        for module in sharded.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        set_model_state_dict(sharded, model.state_dict(), options=StateDictOptions(full_state_dict=True))
        close(sharded(images()), model(images()))
    finally:
        dist.destroy_process_group()


@client("torch", "profiler")
def profiler(kind: Kind) -> None:
    with torch.profiler.profile(with_flops=True) as profile:
        small(kind)(images())
    assert sum(event.flops for event in profile.key_averages()) > 0


@client("accelerate", "prepare, one step")
def accelerate(kind: Kind) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = small(kind)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    accelerator.backward(model(images()).logsumexp(1).sum())
    optimizer.step()


@client("lightning", "Trainer, one step", slow=True)
def lightning(kind: Kind) -> None:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = small(kind)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.model(batch).logsumexp(1).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    L.Trainer(max_steps=1, **quiet).fit(Module(), torch.utils.data.DataLoader(images(2)))


@client("torchao", "int8 weights of linear layers")
def torchao(kind: Kind) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = small(kind)
    expected = model(images())
    quantize_(model, Int8WeightOnlyConfig())
    found = model(images())
    assert (found - expected).norm() < 0.1 * expected.norm()


@client("openvino", "convert_model of a trace in standard operations", slow=True)
def openvino(kind: Kind) -> None:
    import openvino

    model = small(kind)
    with standard_operations(), torch.no_grad():
        compiled = openvino.compile_model(openvino.convert_model(model, example_input=images()), "CPU")
    found = torch.from_numpy(compiled(images().numpy())[0])
    expected = model(images()).detach()
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@client("onnxruntime", "torch.onnx.export, dynamo", slow=True)
def onnxruntime(kind: Kind) -> None:
    export(small(kind), Path(tempfile.mkdtemp()) / "model.onnx", "onnx", (SIDE, SIDE), dynamic_batch=True)


@client("torch", "AOTInductor with a dynamic batch", slow=True)
def aoti(kind: Kind) -> None:
    # Two stages or blocks, of small images: it is compiled for minutes.
    export(small(shallow(kind)), Path(tempfile.mkdtemp()) / "model.pt2", "aoti", (32, 32), dynamic_batch=True)
