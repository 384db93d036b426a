"""Images of every mode become the RGB that a viewer shows; files that are no images give one clear sentence."""

import io
import os
import struct
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


def tiff(rows: bytes, width: int, bits: int, signed: bool = False) -> io.BytesIO:
    """A grey TIFF of one strip, of kinds that Pillow reads and does not write."""
    height = 8 * len(rows) // (bits * width)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 134, 277: 1, 278: height, 279: len(rows)}
    tags[339] = 2 if signed else 1
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return io.BytesIO(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + rows)


def test_twelve_bits_are_scaled() -> None:
    """Pillow leaves 0 to 4095 in 16 bits, which as 16-bit values are nearly black."""
    packed = b"".join((v << 12 | v).to_bytes(3, "big") for v in (0, 2048, 4095, 1024))
    pixels = np.asarray(read_rgb(tiff(packed, 2, 12), "grey.tif"))
    assert pixels[:, 0, 0].tolist() == [0, 128, 255, 64] and (pixels == pixels[:, :1, :1]).all()


@pytest.mark.parametrize(("bits", "signed"), [(16, True), (32, True), (32, False)])
def test_signed_and_32_bit_numbers_are_refused(bits: int, signed: bool) -> None:
    """Where they were taken for 16 bits, 0 to 255 was black, and -1000 to 1000 of a tomography too."""
    values = np.arange(0, 256, 8, dtype=f"<i{bits // 8}").tobytes()
    with pytest.raises(BadImageError, match=r"grey\.tif cannot be read as an image: .*unknown range; save it with 8"):
        read_rgb(tiff(values, 8, bits, signed), "grey.tif")


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


# A picture whose every corner tells where it is, and by each EXIF orientation how a camera stores it.
CORNERS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.uint8).repeat(24, 0).repeat(32, 1)
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[::-1],
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[:, ::-1],
}


def rotated(file: Path, orientation: int, mode: str = "RGB") -> Path:
    """Write the picture as a camera with this orientation does."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED.get(orientation, STORED[1])(CORNERS))).convert(mode).save(
        file, exif=exif, quality=95
    )
    return file


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    file = rotated(tmp_path / f"a{suffix}", orientation)
    image = read_rgb(str(file), "a")
    assert np.abs(np.asarray(image).astype(int) - CORNERS).mean() < 4
    assert np.asarray(to_rgb(image)).shape == CORNERS.shape, "an upright image is not turned again"
    size, found = decode.read_size(str(file))
    assert size in (image.size, image.size[::-1]) and (found == orientation or suffix == ".tif")
    if suffix != ".tif":  # Pillow always turns these
        as_stored = np.asarray(read_rgb(str(file), "a", upright=False))
        assert np.abs(as_stored.astype(int) - STORED[orientation](CORNERS)).mean() < 4


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1"])
def test_images_of_every_mode_are_upright(tmp_path: Path, mode: str) -> None:
    file = rotated(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), 6, mode)
    upright, stored = (np.asarray(read_rgb(str(file), "a", upright=turn)) for turn in (True, False))
    assert np.array_equal(STORED[6](upright), stored) and upright.shape == CORNERS.shape


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_orientations_that_are_none_are_ignored(tmp_path: Path, orientation: int) -> None:
    assert read_rgb(str(rotated(tmp_path / "a.jpg", orientation)), "a").size == (64, 48)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(CORNERS).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff damaged")
    assert read_rgb(str(tmp_path / "a.jpg"), "a").size == (64, 48)


def test_a_pointer_of_git_lfs_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(BadImageError, match=r"a\.jpg cannot .*: it is a pointer of Git LFS.*git lfs pull"):
        read_rgb(str(tmp_path / "a.jpg"), "a.jpg")
    with pytest.raises(BadImageError, match="pointer of Git LFS"):
        decode.read_size(str(tmp_path / "a.jpg"))
