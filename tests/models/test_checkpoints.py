"""Official files load whole, whatever their layout; anything else says in one sentence why not, and changes nothing."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import types
from pathlib import Path

import pytest
import timm
import torch
from families import KINDS
from records import official_weights
from torch import Tensor, nn

from vssm.models import CheckpointError, load_checkpoint, official_state_dict, read_checkpoint, save_official
from vssm.scan import cross, raster

SMALL_VIM = {"embed_dim": 32, "depth": 2, "img_size": 64, "num_classes": 10}
SMALL_VMAMBA = {"dims": (16, 32), "depths": (1, 1), "num_classes": 10}


@pytest.fixture(scope="module")
def vim_weights() -> dict[str, Tensor]:
    return official_weights("vim_tiny")


@pytest.fixture(scope="module")
def vmamba_weights() -> dict[str, Tensor]:
    return official_weights("vmamba_tiny_s1l8")


def save(content: object, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def pretrained(name: str, file: str, **kwargs: object) -> nn.Module:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file}, **kwargs)


@pytest.mark.parametrize("name", ["local_vim_tiny", "lbvim_tiny"])
def test_root_mean_square_norms_are_read_into_layer_norms_without_biases(name: str, tmp_path: Path) -> None:
    """As the authors read a classifier into a segmentor; the other way round what does not fit is named."""
    small = {"embed_dim": 32, "depth": 2, "img_size": 64, "num_classes": 10}
    classifier, centred = (timm.create_model(name, layer_norm=with_mean, **small) for with_mean in (False, True))
    nn.init.normal_(classifier.blocks[1].norm.weight)
    nn.init.normal_(centred.blocks[1].norm.bias)
    load_checkpoint(centred, save(classifier.state_dict(), tmp_path / "classifier.pth"))
    norm = centred.blocks[1].norm
    torch.testing.assert_close(norm.weight, classifier.blocks[1].norm.weight, rtol=0, atol=0)
    assert norm.bias.count_nonzero() == 0
    x = torch.randn(1, 5, 32)
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (32,), norm.weight, eps=1e-5))
    with pytest.raises(CheckpointError, match=r"3 unexpected \(blocks\.0\.norm\.bias"):
        load_checkpoint(classifier, save(centred.state_dict(), tmp_path / "centred.pth"))


def test_official_vim_file(tmp_path: Path, vim_weights: dict[str, Tensor]) -> None:
    """As the training script writes it: settings and an average beside the weights, rope buffers among them."""
    content = {
        "model": {**vim_weights, "rope.freqs_cos": torch.zeros(196, 192), "rope.freqs_sin": torch.zeros(196, 192)},
        "model_ema": {name: value + 1 for name, value in vim_weights.items()},
        "args": argparse.Namespace(lr=1e-3, model="vim"),
        "epoch": 299,
    }
    model = pretrained("vim_tiny", save(content, tmp_path / "vim.pth"))
    torch.testing.assert_close(model.head.weight, vim_weights["head.weight"], rtol=0, atol=0)
    mixer = model.blocks[7].mixer
    torch.testing.assert_close(mixer.scan.A_log[1], vim_weights["layers.7.mixer.A_b_log"], rtol=0, atol=0)
    torch.testing.assert_close(mixer.conv_weight[1], vim_weights["layers.7.mixer.conv1d_b.weight"][:, 0])
    torch.testing.assert_close(model.pos_embed, vim_weights["pos_embed"], rtol=0, atol=0)


def test_official_vmamba_file(
    tmp_path: Path, vmamba_weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 x 1 convolutions as four-dimensional weights, and a yacs configuration although yacs is not installed."""
    linear = re.compile(r"(in_proj|out_proj|fc1|fc2)\.weight$")
    weights = {n: v[:, :, None, None] if linear.search(n) else v for n, v in vmamba_weights.items()}
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    settings = yacs.CfgNode(MODEL=yacs.CfgNode(DROP_PATH_RATE=0.2))
    settings.__dict__["__immutable__"] = True
    file = save({"model": weights, "config": settings, "max_accuracy": 82.6}, tmp_path / "vmamba.pth")
    monkeypatch.undo()
    model = pretrained("vmamba_tiny", file)
    scan = model.stages[2].blocks[3].mixer.scan
    torch.testing.assert_close(scan.A_log.flatten(0, 1), vmamba_weights["layers.2.blocks.3.op.A_logs"], rtol=0, atol=0)
    torch.testing.assert_close(scan.D.flatten(), vmamba_weights["layers.2.blocks.3.op.Ds"], rtol=0, atol=0)
    reduced = model.stages[1].downsample.conv.weight
    torch.testing.assert_close(reduced, vmamba_weights["layers.0.downsample.1.weight"], rtol=0, atol=0)


def test_official_v0_file_with_its_old_names(tmp_path: Path) -> None:
    weights = official_weights("vanilla_vmamba_tiny")
    old_names = [
        (r"^patch_embed\.0\.", "patch_embed.proj."),
        (r"^patch_embed\.2\.", "patch_embed.norm."),
        (r"\.blocks\.(\d+)\.norm\.", r".blocks.\1.ln_1."),
        (r"\.op\.", ".self_attention."),
        (r"^classifier\.norm\.", "norm."),
        (r"^classifier\.head\.", "head."),
    ]
    old = {}
    for name, value in weights.items():
        for pattern, replacement in old_names:
            name = re.sub(pattern, replacement, name)
        old[name] = value
    assert {"patch_embed.proj.weight", "norm.weight", "head.bias", "layers.0.blocks.0.self_attention.Ds"} <= set(old)
    new = pretrained("vanilla_vmamba_tiny", save({"model": weights}, tmp_path / "new.pth")).state_dict()
    loaded = pretrained("vanilla_vmamba_tiny", save({"model": old}, tmp_path / "old.pth")).state_dict()
    assert all(torch.equal(new[name], loaded[name]) for name in new)


def test_official_efficientvmamba_file(tmp_path: Path) -> None:
    """Every name wrapped twice, and the late stages as sequences that begin with a permutation."""
    weights = official_weights("efficientvmamba_tiny")
    state = {f"module.module.{name}": value for name, value in weights.items()}
    content = {"epoch": 299, "state_dict": state, "arch": "efficientvmamba", "metric": 76.5}
    model = pretrained("efficientvmamba_tiny", save(content, tmp_path / "efficient_vmamba_tiny.ckpt"))
    blocks = model.stages[2].blocks
    torch.testing.assert_close(blocks[3].widen.conv.weight, weights["layers.2.4.conv_pw.0.weight"], rtol=0, atol=0)
    torch.testing.assert_close(blocks[0].squeeze.fc2.bias, weights["layers.2.1.se.conv_expand.bias"], rtol=0, atol=0)
    torch.testing.assert_close(
        blocks[0].depthwise.bn.running_var, weights["layers.2.1.conv_dw.1.running_var"], rtol=0, atol=0
    )
    torch.testing.assert_close(
        model.stages[3].downsample.reduction.weight, weights["layers.2.6.reduction.weight"], rtol=0, atol=0
    )
    scan = model.stages[1].blocks[1].mixer.scan
    torch.testing.assert_close(scan.A_log.flatten(0, 1), weights["layers.1.blocks.1.op.A_logs"], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "half"), [("msvmamba_nano", 0), ("msvmamba_v3_tiny", 1)])
def test_official_msvmamba_file(tmp_path: Path, name: str, half: int) -> None:
    """Both scans stacked: the half-resolution one first in the paper's models, last in version 3."""
    weights = official_weights(name)
    model = pretrained(name, save({"model": weights}, tmp_path / "msvmamba.pth"))
    mixer = model.stages[2].blocks[3].mixer
    official = weights["layers.2.blocks.3.op.A_logs"].chunk(2)
    torch.testing.assert_close(mixer.half_scan.A_log[0], official[half], rtol=0, atol=0)
    torch.testing.assert_close(mixer.scan.A_log[0], official[1 - half], rtol=0, atol=0)
    x_proj = weights["layers.2.blocks.3.op.x_proj_weight"]
    torch.testing.assert_close(mixer.half_scan.x_proj[0], x_proj[half], rtol=0, atol=0)
    torch.testing.assert_close(mixer.scan.x_proj[0], x_proj[1 - half], rtol=0, atol=0)


def test_official_files_do_not_fit_where_the_directions_are_others(tmp_path: Path) -> None:
    """Four stacked scans instead of two, or two for a model of more: never half of them, always a sentence."""
    weights = official_weights("msvmamba_nano")
    stacked = re.compile(r"\.op\.(x_proj_weight|dt_projs_\w+|A_logs|Ds)$")
    four = {n: torch.cat([v, v]) if stacked.search(n) else v for n, v in weights.items()}
    with pytest.raises(CheckpointError, match=r"misshapen \(stages.0.blocks.0.mixer.*scan.*expected \(1, 5, 96\)"):
        load_checkpoint(timm.create_model("msvmamba_nano"), save(four, tmp_path / "four.pth"))
    file = save(weights, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"misshapen \(.*mixer.scan.x_proj: \(1, .*, expected \(4,"):
        load_checkpoint(timm.create_model("msvmamba_nano", scan_order=cross), file)
    file = save(official_weights("efficientvmamba_tiny"), tmp_path / "atrous.pth")
    with pytest.raises(CheckpointError, match=r"misshapen \(.*mixer.scan.x_proj: \(4, .*, expected \(1,"):
        load_checkpoint(timm.create_model("efficientvmamba_tiny", scan_order=raster), file)


@pytest.mark.parametrize("name", ["msvmamba_nano", "msvmamba_v3_tiny"])
def test_averaged_weights_of_msvmamba_are_taken_in_version_3(tmp_path: Path, name: str) -> None:
    model = timm.create_model(name, depths=(1, 1, 1, 1), num_classes=10)
    state = model.state_dict()
    average = {key: value + 1 for key, value in state.items()}
    load_checkpoint(model, save({"model": state, "model_ema": average}, tmp_path / "both.pth"))
    expected = average if name == "msvmamba_v3_tiny" else state
    torch.testing.assert_close(model.norm.bias, expected["norm.bias"], rtol=0, atol=0)
    load_checkpoint(model, save({"model_ema": average}, tmp_path / "average.pth"))
    torch.testing.assert_close(model.norm.bias, average["norm.bias"], rtol=0, atol=0)


def test_weights_that_no_program_can_fetch(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"https://drive.google.com/drive/folders/1J41\w+ with a browser, then"):
        timm.create_model("msvmamba_nano", pretrained=True)
    with pytest.raises(CheckpointError, match="cannot be downloaded by a program"):
        timm.create_model("msvmamba_tiny.yuhengsss_in1k", pretrained=True, features_only=True)
    model = timm.create_model("msvmamba_nano", depths=(1, 1, 1, 1))
    for source in ({"file": save(model.state_dict(), tmp_path / "own.pth")}, {"state_dict": model.state_dict()}):
        loaded = timm.create_model("msvmamba_nano", pretrained=True, pretrained_cfg_overlay=source, depths=(1, 1, 1, 1))
        assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)


@pytest.mark.parametrize(("name", "arguments"), KINDS)
def test_official_layout_goes_out_and_comes_back(tmp_path: Path, name: str, arguments: dict) -> None:
    model, other = (timm.create_model(name, num_classes=10, **arguments) for _ in range(2))
    save_official(model, tmp_path / "official.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["official.pth"], "no temporary file is left"
    official = torch.load(tmp_path / "official.pth", weights_only=True)[model.weights_under[0]]
    assert official.keys() != model.state_dict().keys()
    load_checkpoint(other, tmp_path / "official.pth")
    found = other.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "arguments", "prefix"),
    [
        *((*kind, "") for kind in KINDS),
        *((*KINDS[0], prefix) for prefix in ("module.", "model.", "backbone.", "module.model.")),
    ],
)
def test_own_checkpoints_come_back(tmp_path: Path, name: str, arguments: dict, prefix: str) -> None:
    model, other = timm.create_model(name, **arguments), timm.create_model(name, **arguments)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    load_checkpoint(other, save({"state_dict": state, "meta": {"epoch": 3}}, tmp_path / "own.pth"))
    found = other.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["own.safetensors", "own.SAFETENSORS", "own.bin"])
def test_safetensors_are_known_by_what_they_hold(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    model, other = timm.create_model("vim_tiny", **SMALL_VIM), timm.create_model("vim_tiny", **SMALL_VIM)
    save_file(model.state_dict(), tmp_path / name)
    load_checkpoint(other, tmp_path / name)
    assert torch.equal(model.blocks[1].mixer.scan.D, other.blocks[1].mixer.scan.D)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool], ids=str)
def test_whole_numbers_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """torch copies them into float parameters without a word; scales of quantized weights stand elsewhere."""
    model = timm.create_model("vim_tiny", **SMALL_VIM)
    whole = {name: (100 * value).to(dtype) for name, value in model.state_dict().items()}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"\d+ whole numbers.*cls_token: {kind}, expected float32"):
        load_checkpoint(model, save(whole, tmp_path / "whole.pth"))


@pytest.mark.parametrize(("kept", "read"), [(torch.float64, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_weights_beyond_the_precision_of_the_model(tmp_path: Path, kept: torch.dtype, read: torch.dtype) -> None:
    model = timm.create_model("vim_tiny", **SMALL_VIM)
    weights = {name: value.to(kept) for name, value in model.state_dict().items()}
    weights["norm.weight"] = weights["norm.weight"] + torch.finfo(read).max * 4.0
    file = save(weights, tmp_path / "wide.pth")
    name = str(read).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"1 of \d+ weights \(norm.weight as {name}\)"):
        load_checkpoint(model.to(read), file)


def test_two_values_of_one_weight(tmp_path: Path) -> None:
    """Which of them counted was a matter of their order in the file; one value twice, as of tied weights, is none."""
    model, order = timm.create_model("vim_tiny", **SMALL_VIM), "blocks.0.mixer.scan.D"
    ours = model.state_dict()
    prefixed = {f"module.{name}": value for name, value in ours.items()}
    for weights, name in ((prefixed, "head.weight"), (official_state_dict(model), order)):
        load_checkpoint(model, save({**weights, name: ours[name].clone()}, tmp_path / "same.pth"))
        for twice in ({**weights, name: ours[name] + 1}, {name: ours[name] + 1, **weights}):
            with pytest.raises(CheckpointError, match=f"has two values of {name}"):
                load_checkpoint(model, save(twice, tmp_path / "twice.pth"))


@pytest.mark.parametrize("name", ["head.weight", "patch_embed.proj.weight"])
def test_a_number_in_place_of_a_matrix(tmp_path: Path, name: str) -> None:
    model = timm.create_model("vim_tiny", **SMALL_VIM)
    file = save({**model.state_dict(), name: torch.tensor(1.0)}, tmp_path / "number.pth")
    with pytest.raises(CheckpointError, match=rf"1 misshapen \({name}: \(\), expected"):
        load_checkpoint(model, file, adapt=True)


def test_official_files_go_into_folders(tmp_path: Path) -> None:
    model = timm.create_model("vim_tiny", **SMALL_VIM)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent; make it first"):
        save_official(model, tmp_path / "absent" / "vim.pth")
    with pytest.raises(IsADirectoryError, match="is a folder; expected the name of a file"):
        save_official(model, tmp_path, overwrite=True)


def test_other_number_of_classes_and_channels(tmp_path: Path, vim_weights: dict[str, Tensor]) -> None:
    file = save({"model": vim_weights}, tmp_path / "vim.pth")
    model = pretrained("vim_tiny", file, num_classes=7, in_chans=1)
    assert model.head.weight.shape == (7, 192) and model.head.weight.std() < 0.03
    torch.testing.assert_close(model.norm.weight, vim_weights["norm_f.weight"], rtol=0, atol=0)
    torch.testing.assert_close(
        model.patch_embed.proj.weight, vim_weights["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    assert pretrained("vim_tiny", file, num_classes=0)(torch.zeros(1, 3, 32, 32)).shape == (1, 192)
    features = pretrained("vim_tiny", file, features_only=True, out_indices=(2,))
    scan = features.model.blocks[2].mixer.scan
    torch.testing.assert_close(scan.dt_bias[0], vim_weights["layers.2.mixer.dt_proj.bias"], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"2 misshapen \(head.weight: \(1000, 192\), expected \(7, 192\)"):
        load_checkpoint(timm.create_model("vim_tiny", num_classes=7), file)


def test_position_embedding_of_another_image_size(tmp_path: Path, vim_weights: dict[str, Tensor]) -> None:
    """Loading at a size is the same as loading at the stored size and then setting the size."""
    file = save({"model": vim_weights}, tmp_path / "vim.pth")
    model = pretrained("vim_tiny", file, img_size=(160, 320))
    assert model.pos_embed.shape == (1, 10 * 20 + 1, 192)
    torch.testing.assert_close(model.pos_embed[:, 100], vim_weights["pos_embed"][:, 98], rtol=0, atol=0)
    reference = pretrained("vim_tiny", file)
    reference.set_input_size((160, 320))
    torch.testing.assert_close(model.pos_embed, reference.pos_embed)


class Evil:
    """What an attacker would put into a file."""

    def __reduce__(self):
        return eval, ("print('code of the file was run')",)


def test_files_that_are_no_checkpoints(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    model = timm.create_model("vim_tiny", **SMALL_VIM)
    good = Path(save({"model": model.state_dict()}, tmp_path / "good.pth"))
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "text.pth").write_text("weights\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "old_evil.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    save({"model": Evil()}, tmp_path / "evil.pth")
    save([1, 2, 3], tmp_path / "list.pth")
    save({"optimizer": {}, "epoch": 3}, tmp_path / "no_weights.pth")
    expected = {
        "absent.pth": "there is no checkpoint at",
        "cut.pth": "damaged, incomplete or no checkpoint",
        "text.pth": "damaged, incomplete or no checkpoint",
        "empty.pth": "damaged, incomplete or no checkpoint",
        "cut.safetensors": "damaged, incomplete or no checkpoint",
        "evil.pth": "could run code",
        "old_evil.pth": "could run code",
        "list.pth": "holds no weights.*found list",
        "no_weights.pth": r"holds no weights.*found \['optimizer', 'epoch'\]",
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, told in expected.items():
        with pytest.raises(CheckpointError, match=told) as error:
            load_checkpoint(model, tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(CheckpointError, match=told):
            pretrained("vim_tiny", str(tmp_path / name), **SMALL_VIM)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "code of the file" not in capfd.readouterr().out


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    vim, vmamba = timm.create_model("vim_tiny", **SMALL_VIM), timm.create_model("vmamba_tiny", **SMALL_VMAMBA)
    deeper = timm.create_model("vim_tiny", **{**SMALL_VIM, "depth": 3})
    wider = timm.create_model("vim_tiny", **{**SMALL_VIM, "embed_dim": 48})
    before = {name: value.clone() for name, value in vim.state_dict().items()}
    for other, told in (
        (vmamba, "does not fit Vim, nothing was loaded: .* missing .*unexpected .*stem.conv1.weight"),
        (deeper, r"nothing was loaded: 10 unexpected \(blocks.2.norm.weight, .*, \.\.\.\)$"),
        (wider, r"misshapen \(cls_token: \(1, 1, 48\), expected \(1, 1, 32\)"),
    ):
        file = save({"model": other.state_dict()}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=told):
            load_checkpoint(vim, file)
        with pytest.raises(CheckpointError, match=told):
            pretrained("vim_tiny", file, **SMALL_VIM)
    partial = {name: value for name, value in vim.state_dict().items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing \(norm.weight\)"):
        load_checkpoint(vim, save(partial, tmp_path / "partial.pth"))
    assert all(torch.equal(value, before[name]) for name, value in vim.state_dict().items())


def test_one_direction_of_a_vim_file_is_missing(tmp_path: Path, vim_weights: dict[str, Tensor]) -> None:
    weights = {name: value for name, value in vim_weights.items() if name != "layers.3.mixer.D_b"}
    with pytest.raises(
        CheckpointError, match=r"1 missing \(blocks.3.mixer.scan.D\); 1 unexpected \(layers.3.mixer.D\)"
    ):
        pretrained("vim_tiny", save({"model": weights}, tmp_path / "half.pth"))


def test_read_checkpoint_gives_the_names_in_the_file(tmp_path: Path, vim_weights: dict[str, Tensor]) -> None:
    read = read_checkpoint(save({"model": vim_weights}, tmp_path / "vim.pth"))
    assert list(read) == list(vim_weights)


def test_a_checkpoint_of_another_number_of_directions_says_so(
    tmp_path: Path, vmamba_weights: dict[str, Tensor], vim_weights: dict[str, Tensor]
) -> None:
    """Official weights, and ours, under an order that they have no parameters for; one of as many directions fits."""
    file = save({"model": vmamba_weights}, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match=r"scans have 4 directions and the model's 2: choose a scan_order with 4"):
        pretrained("vmamba_tiny", file, scan_order="bidirectional")
    pretrained("vmamba_tiny", file, scan_order="hilbert")
    file = save({"model": vim_weights}, tmp_path / "vim.pth")
    with pytest.raises(CheckpointError, match=r"scans have 2 directions and the model's 4: choose a scan_order with 2"):
        pretrained("vim_tiny", file, scan_order="cross")
    ours = timm.create_model("vmamba_tiny", **SMALL_VMAMBA)
    model = timm.create_model("vmamba_tiny", **SMALL_VMAMBA, scan_order=["cross", "spiral"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="scans have 4 directions and the model's 6"):
        load_checkpoint(model, save(ours.state_dict(), tmp_path / "ours.pth"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
