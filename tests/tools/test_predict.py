"""tools/predict.py and tools/demo.py, as a user calls them."""

import io
import json
import weakref
from pathlib import Path

import numpy
import pytest
import timm
import torch
from PIL import Image

from vssm import cli
from vssm.cli import prediction
from vssm.cli.prediction import SHEET, check_out, find_images, load_predictor, pictures_of, predict_files, progress_line
from vssm.data import build_transform
from vssm.errors import ConfigError
from vssm.inference import Predictor
from vssm.models import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(tmp_path):
    """A Vim of 1000 classes in a file of weights."""
    path = tmp_path / "vim.pth"
    torch.save({"model": timm.create_model("vim_tiny").state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path):
    """Images of several kinds: colour, one channel, 16 bit, alpha."""
    noise = numpy.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=numpy.uint8)
    paths = [tmp_path / f"{name}.png" for name in ("colour", "grey", "deep", "clear")]
    arrays = noise[..., :3], noise[..., 0], noise[..., 0].astype(numpy.uint16) * 257, noise
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    return paths


def test_predict(run, weights, images, tmp_path):
    out = tmp_path / "picture.png"
    done = run(ROOT / "tools/predict.py", *images, "--model", "vim_tiny", "--checkpoint", weights, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("%") == 5 * len(images) and str(out) in done.stdout
    assert Image.open(out).size[0] > 100


def test_labels(weights, images, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"name {i}" for i in range(1000)))
    predictor = load_predictor("vim_tiny", weights, labels)
    (result,) = predict_files(predictor, images[:1], tmp_path / "out.png")
    assert json.loads((tmp_path / "out.json").read_text())[0]["image"] == result["image"] == str(images[0])
    best, probability = result["classes"][0]
    assert best.startswith("name ") and 0 < probability < 1
    labels.write_bytes(
        b"".join(b"crane\r\n" if i in (3, 7) else b"name\xc2\x85%d\r\n" % i for i in range(1000)) + b"\r\n"
    )
    assert load_predictor("vim_tiny", weights, labels).labels[2:8:5] == ["name\x852", "crane (7)"]
    labels.write_text("one\ntwo")
    with pytest.raises(ConfigError, match="1000 classes, but there are 2 labels"):
        load_predictor("vim_tiny", weights, labels)


def test_failures(weights, images, tmp_path):
    with pytest.raises(ConfigError, match="did you mean vim_tiny"):
        load_predictor("vim_tinny", weights)
    with pytest.raises(ConfigError, match="which model"):
        load_predictor(None, weights)
    with pytest.raises(CheckpointError, match=r"vim\.pth"):
        load_predictor("vmamba_tiny", weights)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_out(images[1] / "out.png", images[1:])


def test_demo(run, config, tmp_path):
    """The demo's steps on the small config; a checkpoint of a training then needs no --model."""
    work = tmp_path / "demo"
    done = run(ROOT / "tools/demo.py", "--config", config, "--work-dir", work)
    assert done.returncode == 0, done.stderr
    for part in ("accuracy of test_vit", "linear classifier", str(work / "predictions.png"), "step 12/12"):
        assert part in done.stdout
    assert Image.open(work / "predictions.png").size[0] > 100
    predictor = load_predictor(None, work / "epoch_3.pth")
    assert len(predictor.labels) == 10 and "star" in predictor.labels
    with pytest.raises(ConfigError, match="checkpoint of test_vit, not of vim_tiny"):
        load_predictor("vim_tiny", work / "epoch_3.pth")


LABELS = ("кошка", "猫", "dog")


@pytest.fixture
def predictor():
    """A classifier of three classes, small and fast."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3))
    return Predictor(model, build_transform(dict(type="TimmTransform", input_size=8)), LABELS, {})


@pytest.fixture
def photos(tmp_path):
    """Write images of noise with these names; returns their paths."""

    def write(*names, size=(30, 20)):
        paths = []
        for seed, name in enumerate(names):
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = numpy.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(path)
            paths.append(path)
        return paths

    return write


def test_files_folders_and_patterns(photos, tmp_path, capsys, monkeypatch):
    photos("b.JPEG", "a.png", "deep/c.webp", ".hidden/d.png", "._e.png", "[f].bmp")
    (tmp_path / "photos/notes.txt").touch()
    (tmp_path / "photos/linked").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    names = ["[f].bmp", "a.png", "b.JPEG", "deep/c.webp"]
    assert find_images(["photos"]) == [Path("photos", name) for name in names]
    told = capsys.readouterr().err
    assert "photos: 3 other files are left out: ._e.png, .hidden/d.png, notes.txt" in told
    assert find_images(["photos/**/*.webp", "photos/[f].bmp", "absent.jpg"]) == [
        Path("photos/deep/c.webp"), Path("photos/[f].bmp"), Path("absent.jpg")
    ]  # fmt: skip
    assert find_images(["photos/a.png", "photos/*.png"]) == [Path("photos/a.png")]
    (tmp_path / "empty").mkdir()
    for text in ("empty", "photos/*.gif"):
        with pytest.raises(ConfigError, match="there are no images in"):
            find_images([text])


def test_bad_images_are_told_at_the_end_and_all_others_written(predictor, photos, tmp_path, monkeypatch, capsys):
    paths = photos("a.png", "b.jpg", "c.png", "d.png")
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[2].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    monkeypatch.setattr(prediction, "load_predictor", lambda *_: predictor)
    out = tmp_path / "out/all.png"
    folder, absent = str(tmp_path / "photos"), str(tmp_path / "absent.png")
    assert cli.predict([folder, absent, "--out", str(out), "--batch", "2"]) == 1
    error = capsys.readouterr().err
    assert "3 of 5 images could not be read; the others' results are written" in error and "Traceback" not in error
    for part in (
        "b.jpg cannot be read",
        "c.png cannot be read",
        "Git LFS",
        "absent.png cannot be read",
        "No such file",
    ):
        assert part in error
    results = json.loads(out.with_suffix(".json").read_text())
    assert [("classes" in each, "error" in each) for each in results] == [
        (True, False), (False, True), (False, True), (True, False), (False, True)
    ]  # fmt: skip
    assert Image.open(out).size[0] > 300


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_change_nothing(predictor, photos, tmp_path, batch):
    paths = photos(*(f"{number}.png" for number in range(7)))
    results = list(predict_files(predictor, paths, tmp_path / "all.png", batch))
    for path, result in zip(paths, results, strict=True):
        alone = predictor(Image.open(path).convert("RGB"))
        assert [name for name, _ in result["classes"]] == [name for name, _ in alone]
        assert [share for _, share in result["classes"]] == pytest.approx([share for _, share in alone])


def test_memory_does_not_grow_with_the_number_of_images(predictor, photos, tmp_path, monkeypatch):
    paths = photos(*(f"{number}.png" for number in range(20)), size=(40, 30))
    seen, most = [], []
    read = prediction.read_rgb

    def watched(*arguments, **options):
        image = read(*arguments, **options)
        seen.append(weakref.ref(image))
        most.append(sum(each() is not None for each in seen))
        return image

    monkeypatch.setattr(prediction, "read_rgb", watched)
    assert len(list(predict_files(predictor, paths, tmp_path / "all.png", batch=2))) == 20
    assert max(most) <= 2


def test_many_images_make_several_pictures(predictor, photos, tmp_path):
    (path,) = photos("a.png")
    results = list(predict_files(predictor, [path] * (SHEET + 1), tmp_path / "all.png", batch=16))
    assert [result["picture"] for result in (results[0], results[-1])] == [
        str(tmp_path / "all_1.png"), str(tmp_path / "all_2.png")
    ]  # fmt: skip
    assert all(Path(result["picture"]).is_file() for result in results)


def test_an_interrupted_prediction_leaves_what_was_done(predictor, photos, tmp_path):
    results = predict_files(predictor, photos("a.png", "b.png", "c.png"), tmp_path / "all.png", batch=1)
    first = next(results)
    results.close()
    assert json.loads((tmp_path / "all.json").read_text()) == json.loads(json.dumps([first]))


def test_earlier_results_stay_where_there_are_none(predictor, photos, tmp_path, monkeypatch):
    (tmp_path / "p.json").write_text("earlier")
    monkeypatch.setattr(predictor, "batch", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(predict_files(predictor, photos("a.png"), tmp_path / "p.png"))
    assert [(file.name, file.read_text()) for file in tmp_path.glob("*.json*")] == [("p.json", "earlier")]
    assert not list(tmp_path.glob(".*.part*"))


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a", "PNG")]
)
def test_pictures_are_what_their_names_say(predictor, photos, tmp_path, name, kind):
    list(predict_files(predictor, photos("x.png"), tmp_path / "out" / name))
    assert Image.open(tmp_path / "out" / name).format == kind
    assert Image.MIME[kind] and (tmp_path / "out/a.json").is_file()


def test_where_pictures_may_not_go(photos, tmp_path):
    paths = photos("a.png", "b.png")
    for name in ("x.json", "x.pdf", "x.txt"):
        with pytest.raises(ConfigError, match=r"--out .*expected \.png, \.jpg"):
            check_out(tmp_path / name, paths)
    with pytest.raises(ConfigError, match="would overwrite an input"):
        check_out(paths[0], paths[:1])
    Image.new("RGB", (2, 2)).save(tmp_path / "photos/c_a.png")
    with pytest.raises(ConfigError, match="would overwrite an input"):
        check_out(tmp_path / "photos/c.png", [*paths, tmp_path / "photos/c_a.png"])
    (tmp_path / "link.png").symlink_to("nowhere/a.png")
    with pytest.raises(ConfigError, match=r"link\.png is a link to nothing"):
        check_out(tmp_path / "link.png", paths[:1], overwrite=True)
    check_out(tmp_path / "predictions.png", [Path(f"{number}{'x' * 248}.jpg") for number in range(2)])


@pytest.mark.parametrize(
    "names",
    [
        ("a/x.png", "b/x.png"),
        ("x.png", "x.jpg"),
        ("x.png", "x_classes.png"),
        ("x.png", "X.png"),
        ("x.y.png", "x.z.png"),
        ("x" * 250 + "1.png", "x" * 250 + "2.png"),
        ("\u4e2d" * 80 + "1.png", "\u4e2d" * 83 + ".png"),
    ],
)
def test_no_two_images_share_a_picture(names, tmp_path):
    files = pictures_of(tmp_path / "out.png", [Path(name) for name in names])
    everything = [file.name.lower() for file in files] + [f"{file.stem}_classes.png".lower() for file in files]
    assert len(set(everything)) == 2 * len(names) and max(len(name.encode()) for name in everything) <= 255


def test_the_number_of_classes_is_the_files(photos, tmp_path):
    """Weights that were fine-tuned on seven classes, with and without labels, of this library and of timm."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\ufeff" + "\n".join(f"класс {i}" for i in range(7)), encoding="utf-8")
    for name in ("vim_tiny", "test_vit"):
        file = tmp_path / f"{name}.pth"
        torch.save({"model": timm.create_model(name, num_classes=7).state_dict()}, file)
        assert list(load_predictor(name, file, labels).labels) == [f"класс {i}" for i in range(7)]
        assert load_predictor(name, file).labels[6] == "class 6"
    labels.write_text("one\ntwo")
    with pytest.raises(ConfigError, match="the model has 7 classes, but there are 2 labels"):
        load_predictor("test_vit", file, labels)
    labels.write_bytes("имя".encode("cp1251"))
    with pytest.raises(ConfigError, match=r"labels\.txt is no text in UTF-8"):
        load_predictor("test_vit", file, labels)


def test_devices(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    model = load_predictor("test_vit", tmp_path / "vit.pth", device="cpu").model
    assert next(model.parameters()).device.type == "cpu"
    for device in ("gpu", "cuda:99", ""):
        with pytest.raises(ConfigError, match=f"--device {device}"):
            load_predictor("test_vit", tmp_path / "vit.pth", device=device)


def test_batches_are_positive(capsys):
    for text in ("0", "-1", "x"):
        with pytest.raises(SystemExit):
            cli.predict(["a.png", "--batch", text])
        assert "takes a whole number from 1 to" in capsys.readouterr().err


def test_a_line_shows_how_far_it_is(capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with progress_line(4, stream) as done:
        for name in "abcd":
            done({"image": name, "picture": "p.png", "classes": [("dog", 0.5)]})
    assert "[#####               ] 1/4 images" in stream.getvalue() and "4/4 images" in stream.getvalue()
    assert capsys.readouterr().out.count(" 50.0%  dog") == 4
