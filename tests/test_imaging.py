"""Arrays, scales and picture files; Pillow is the reference for the files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import DrawPortrait
from PIL import Image, ImageOps

from fasdiff_edge import ImageError
from fasdiff_edge.image_probe import probe
from fasdiff_edge.imaging import (
    MAX_FILE_PIXELS,
    check_image,
    crop,
    downscale,
    read_picture,
    upscale,
    write_picture,
)


def save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(cv2.PSNR(a, b))


# -- arrays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "got NoneType"),
        ([[1, 2], [3, 4]], "got list"),
        (np.zeros((64, 64), np.uint8), r"three channels.*got uint8 \[64, 64\]"),
        (np.zeros((64, 64, 1), np.uint8), r"three channels.*\[64, 64, 1\]"),
        (np.zeros((64, 64, 4), np.uint8), r"three channels.*\[64, 64, 4\]"),
        (np.zeros((1, 64, 64, 3), np.uint8), "three channels"),
        (np.zeros((64, 64, 3), np.float32), r"expected uint8.*got float32"),
        (np.zeros((64, 64, 3), np.int8), "expected uint8"),
        (np.zeros((64, 64, 3), np.uint16), "expected uint8"),
        (np.zeros((31, 64, 3), np.uint8), "got 64 x 31"),
        (np.zeros((64, 31, 3), np.uint8), "got 31 x 64"),
        (np.zeros((0, 64, 3), np.uint8), "got 64 x 0"),
        (np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (4097, 64, 3)), "got 64 x 4097"),
        (np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (64, 4097, 3)), "got 4097 x 64"),
    ],
)
def test_refused_arrays(image: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        check_image(image)


def test_layouts_are_made_contiguous(draw_portrait: DrawPortrait) -> None:
    image = draw_portrait(40, 50)
    assert check_image(image) is image
    for view in (image[::-1], image[:, :, ::-1], image[:, 1::1], np.asfortranarray(image)):
        checked = check_image(view)
        assert checked.flags.c_contiguous
        assert np.array_equal(checked, view)


def test_downscale_averages_blocks() -> None:
    image = np.random.default_rng(3).integers(0, 256, (64, 48, 3), np.uint8)
    for scale in (1, 2, 3):
        block = 1 << scale
        shape = (64 // block, block, 48 // block, block, 3)
        mean = image.reshape(shape).astype(np.float64).mean(axis=(1, 3))
        assert np.abs(downscale(image, scale) - mean).max() <= 0.5


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 39), (41, 257)])
@pytest.mark.parametrize("scale", [0, 1, 2, 3])
def test_scaling_keeps_size_and_place(size: tuple[int, int], scale: int) -> None:
    height, width = size
    # On a plane, half a pixel of shift would be an error of one level; rounding is half of that.
    plane = 40.0 + 1.5 * np.arange(height)[:, None] + 0.5 * np.arange(width)
    image = np.clip(np.repeat(plane[:, :, None], 3, axis=2), 0, 255).round().astype(np.uint8)
    small = downscale(image, scale)
    assert small.shape == (-(-height // (1 << scale)), -(-width // (1 << scale)), 3)
    back = upscale(small, scale, height, width)
    assert back.shape == image.shape
    assert back.flags.c_contiguous
    error = back.astype(float) - image
    inner = error[12:20, 12:20]
    assert abs(float(inner.mean())) < 0.6
    assert np.abs(inner).max() <= 2.0


def test_crop() -> None:
    image = np.arange(20 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 3)
    assert np.array_equal(crop(image, (4, 3, 5, 6)), image[3:9, 4:9])
    assert np.array_equal(crop(image, (0, 0, 30, 20)), image)


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (26, 0, 5, 5), (0, 16, 5, 5)]
)
def test_crop_outside(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageError, match="the box"):
        crop(np.zeros((20, 30, 3), np.uint8), box)


# -- picture files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rgb(draw_portrait: DrawPortrait) -> np.ndarray:
    return draw_portrait(45, 60)


@pytest.fixture(scope="module")
def picture(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(rgb)


def test_png_is_exact(rgb: np.ndarray, picture: Image.Image) -> None:
    assert np.array_equal(read_picture(save(picture, "PNG")), rgb)
    assert np.array_equal(read_picture(write_picture(rgb, ".PNG")), rgb)


@pytest.mark.parametrize(("file_format", "lowest"), [("JPEG", 40.0), ("WEBP", 35.0)])
def test_lossy_files_match_pillow(picture: Image.Image, file_format: str, lowest: float) -> None:
    data = save(picture, file_format, quality=90)
    reference = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert psnr(read_picture(data), reference) > lowest


def test_lossless_webp_is_exact(rgb: np.ndarray, picture: Image.Image) -> None:
    assert np.array_equal(read_picture(save(picture, "WEBP", lossless=True)), rgb)


def test_jpeg_out(rgb: np.ndarray) -> None:
    for suffix in (".jpg", ".jpeg", ".JPG"):
        data = write_picture(rgb, suffix)
        assert data[:3] == b"\xff\xd8\xff"
        assert psnr(np.array(Image.open(io.BytesIO(data))), rgb) > 30.0


def test_other_suffixes_are_refused(rgb: np.ndarray) -> None:
    for suffix in ("", ".bmp", ".fsd"):
        with pytest.raises(ImageError, match="cannot write"):
            write_picture(rgb, suffix)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_grey_becomes_rgb(picture: Image.Image, file_format: str) -> None:
    data = save(picture.convert("L"), file_format)
    reference = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert psnr(read_picture(data), reference) > 45.0


@pytest.mark.parametrize("mode", ["1", "P"])
def test_palettes_and_bits(picture: Image.Image, mode: str) -> None:
    data = save(picture.convert(mode), "PNG")
    reference = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read_picture(data), reference)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "WEBP"])
def test_alpha_is_composited_on_white(picture: Image.Image, mode: str) -> None:
    layered = picture.convert("RGBA")
    alpha = np.linspace(0, 255, 45 * 60).astype(np.uint8).reshape(45, 60)
    layered.putalpha(Image.fromarray(alpha))
    if mode == "WEBP":
        data = save(layered, "WEBP", lossless=True, exact=True)
    else:
        data = save(layered.convert(mode), "PNG")
    reference = Image.new("RGBA", picture.size, "white")
    reference.alpha_composite(Image.open(io.BytesIO(data)).convert("RGBA"))
    error = read_picture(data).astype(int) - np.array(reference.convert("RGB"))
    assert np.abs(error).max() <= 1


def test_transparent_colour_becomes_white(picture: Image.Image) -> None:
    flat = Image.new("RGB", (40, 40), (10, 20, 30))
    assert (read_picture(save(flat, "PNG", transparency=(10, 20, 30))) == 255).all()


def png16(values: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", values)
    assert done
    return bytes(data)


def test_sixteen_bits_are_rounded() -> None:
    levels = np.arange(65536, dtype=np.uint32).astype(np.uint16).reshape(256, 256)
    expected = np.rint(levels / 257.0).astype(np.uint8)
    assert np.array_equal(read_picture(png16(levels)), np.repeat(expected[:, :, None], 3, axis=2))
    bgr = np.stack([levels, levels.T, levels[::-1]], axis=2)
    assert np.array_equal(
        read_picture(png16(bgr)), np.stack([expected[::-1], expected.T, expected], axis=2)
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(
    picture: Image.Image, file_format: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(
        picture, file_format, exif=exif, **({"quality": 95} if file_format != "PNG" else {})
    )
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert psnr(read_picture(data), np.array(upright.convert("RGB"))) > 35.0


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_in_either_byte_order(rgb: np.ndarray, order: str) -> None:
    front = {"<": b"II*\0", ">": b"MM\0*"}[order]
    exif = front + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, 3, 0, 0)
    chunk = b"eXIf" + exif
    png = write_picture(rgb, ".png")
    inserted = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert np.array_equal(read_picture(png[:33] + inserted + png[33:]), rgb[::-1, ::-1])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_ignored(picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert read_picture(save(picture, "JPEG", exif=exif)).shape == (45, 60, 3)


def test_damaged_exif_is_ignored(picture: Image.Image) -> None:
    for exif in (b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"XX", b""):
        data = save(picture, "JPEG")
        body = b"Exif\0\0" + exif
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        assert read_picture(data[:2] + segment + data[2:]).shape == (45, 60, 3)


def test_adobe_cmyk_is_converted(rgb: np.ndarray, picture: Image.Image) -> None:
    data = save(picture.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert psnr(read_picture(data), rgb) > 30.0


def test_other_cmyk_is_refused(picture: Image.Image) -> None:
    data = save(picture.convert("CMYK"), "JPEG").replace(b"Adobe", b"Abode")
    with pytest.raises(ImageError, match="CMYK"):
        read_picture(data)


def test_animation_gives_its_first_frame(rgb: np.ndarray, picture: Image.Image) -> None:
    frames = [Image.new("RGB", picture.size, colour) for colour in ("red", "green")]
    data = save(picture, "WEBP", save_all=True, append_images=frames, lossless=True)
    assert np.array_equal(read_picture(data), rgb)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"GIF89a" + bytes(40), b"BM" + bytes(60), bytes(100), b"\xfa\x10" * 20]
)
def test_foreign_files_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not an image file"):
        read_picture(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_every_kind_of_truncation_is_refused(picture: Image.Image, file_format: str) -> None:
    data = save(picture, file_format)
    for length in range(0, len(data) - len(data) // 8, 37):
        with pytest.raises(ImageError):
            read_picture(data[:length])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_damage_gives_a_picture_or_our_error(picture: Image.Image, file_format: str) -> None:
    random = np.random.default_rng(5)
    data = save(picture, file_format)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for at in random.integers(2, len(data), 3):
            damaged[at] = random.integers(256)
        try:
            image = read_picture(bytes(damaged))
        except ImageError:
            refused += 1
        else:
            assert image.dtype == np.uint8
            assert image.ndim == 3
    assert refused > 0


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    front = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return front + struct.pack(">I", zlib.crc32(chunk))


def test_bombs_are_refused_by_their_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("the file was decoded")

    monkeypatch.setattr(cv2, "imdecode", forbidden)
    side = 2**14
    assert side * side > MAX_FILE_PIXELS
    jpeg = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 8, 8, side, side, 3)
    vp8x = struct.pack("<I", 0) + (side - 1).to_bytes(3, "little") * 2
    webp = b"RIFF\x16\0\0\0WEBPVP8X" + struct.pack("<I", 10) + vp8x
    for data in (png_header(side, side), jpeg, webp):
        with pytest.raises(ImageError, match=f"{side} x {side} pixels"):
            read_picture(data)


@pytest.mark.parametrize("lossless", [False, True])
def test_probe_reads_webp_sizes(picture: Image.Image, lossless: bool) -> None:
    found = probe(save(picture, "WEBP", lossless=lossless))
    assert (found.format, found.width, found.height) == ("WebP", 60, 45)


def test_probe_reads_progressive_jpeg(picture: Image.Image) -> None:
    found = probe(save(picture, "JPEG", progressive=True))
    assert (found.format, found.width, found.height) == ("JPEG", 60, 45)
