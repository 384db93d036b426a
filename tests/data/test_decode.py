"""Images of every mode become the RGB that a viewer shows; files that are no images give one clear sentence."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vssm.data import decode
from vssm.data.decode import BadImageError, read_rgb, to_rgb

RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def written_and_read(tmp_path: Path, image: Image.Image, suffix: str = ".png") -> np.ndarray:
    file = tmp_path / f"image{suffix}"
    image.save(file)
    result = read_rgb(str(file), str(file))
    assert result.mode == "RGB"
    return np.asarray(result)


def test_one_channel_is_repeated(tmp_path: Path) -> None:
    pixels = written_and_read(tmp_path, Image.fromarray(RAMP))
    assert np.array_equal(pixels, np.repeat(RAMP[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    pixels = written_and_read(tmp_path, Image.fromarray(RAMP.astype(np.uint16) * 257), suffix)
    assert np.array_equal(pixels, np.repeat(RAMP[..., None], 3, axis=2))


def test_wide_integers_are_taken_as_sixteen_bits() -> None:
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(RAMP.astype(np.int32) * 257)))[..., 0], RAMP)


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    layer = np.zeros((1, 3, 4), dtype=np.uint8)
    layer[0, :, 0] = 200
    layer[0, :, 3] = (0, 255, 51)  # unseen, opaque, a fifth
    pixels = written_and_read(tmp_path, Image.fromarray(layer, "RGBA"))
    assert pixels[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]


def test_one_channel_with_alpha(tmp_path: Path) -> None:
    pixels = written_and_read(tmp_path, Image.merge("LA", [Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0)]))
    assert (pixels == 255).all()


def test_palette_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert written_and_read(tmp_path, image)[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    image.info["transparency"] = 1
    assert written_and_read(tmp_path, image)[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_and_two_levels(tmp_path: Path) -> None:
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    pixels = written_and_read(tmp_path, Image.fromarray(grey).convert("CMYK"), ".jpg")
    assert np.abs(pixels.astype(int) - 128).max() <= 2
    assert written_and_read(tmp_path, Image.fromarray(RAMP > 99))[0, 0].tolist() == [0, 0, 0]


def test_floating_point_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(RAMP.astype(np.float32)).save(file, "TIFF")
    with pytest.raises(BadImageError, match=r"float\.tif cannot be read as an image: .*unknown range"):
        read_rgb(file, "float.tif")


def bad_files() -> dict[str, bytes]:
    def encoded(kind: str) -> bytes:
        file = io.BytesIO()
        Image.effect_noise((64, 64), 50).convert("RGB").save(file, kind)
        return file.getvalue()

    png, jpeg = encoded("PNG"), encoded("JPEG")
    return {
        "empty.jpg": b"",
        "text.jpg": b"this is not an image",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header_only.jpg": jpeg[:20],
        "truncated.png": png[: len(png) // 2],
        "corrupt.png": png[:100] + bytes(200) + png[300:],
        "bad_chunk.png": png[:12] + b"XXXX" + png[16:],
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(bad_files()[name])
    with pytest.raises(BadImageError, match=f"{name} cannot be read as an image") as caught:
        read_rgb(str(file), str(file))
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = io.BytesIO()
    Image.new("L", (50, 50)).save(file, "PNG")
    with pytest.raises(BadImageError, match=r"bomb\.png cannot be read"):
        read_rgb(file, "bomb.png")
    monkeypatch.undo()
    monkeypatch.setattr(decode, "MAX_PIXELS", 2499)
    with pytest.raises(BadImageError, match="50 x 50 pixels are too many; expected at most 2,499"):
        read_rgb(file, "bomb.png")


@pytest.mark.parametrize("path", ["pipe.png", "/dev/zero", "."])
def test_what_is_no_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Opening a named pipe that nobody writes to would wait for ever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    with pytest.raises(BadImageError, match=r"it is a (named pipe|device|folder); expected a regular file"):
        read_rgb(path, path)
