"""Images in and out: arrays, sizes, scales and picture files. The only place that knows BGR."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .image_probe import probe

MIN_SIDE, MAX_SIDE = 32, 4096  # pixels, of an image to encode
MAX_FILE_PIXELS = 2**26  # of a picture file; it may be cropped before it is encoded
OUTPUT_SUFFIXES = (".png", ".jpg", ".jpeg")
_JPEG_QUALITY = 95
_STRIP_ROWS = 64

Image = NDArray[np.uint8]


def check_image(image: Any) -> Image:
    """Check what was handed to the encoder.

    Args:
      image: anything.
    Returns:
      uint8 RGB [H, W, 3], C-contiguous; the same memory where possible.
    Raises:
      ImageError: not an array, not uint8, not three channels, or a side outside 32..4096; the
        message gives what was received.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"expected a uint8 RGB array [H, W, 3], got {type(image).__name__}")
    got = f"got {image.dtype} {list(image.shape)}"
    if image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"expected three channels, RGB [H, W, 3]; {got}")
    if image.dtype != np.uint8:
        raise ImageError(f"expected uint8, 0..255; {got}")
    height, width = image.shape[:2]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ImageError(
            f"width and height must be {MIN_SIDE}..{MAX_SIDE} pixels; got {width} x {height}"
        )
    return np.ascontiguousarray(image)


def downscale(image: Image, scale: int) -> Image:
    """Shrink to 1 / 2**scale by averaging blocks.

    Args:
      image: uint8 RGB [H, W, 3].
      scale: 0..3; sides that 2**scale does not divide are extended by symmetric reflection.
    Returns:
      uint8 RGB [ceil(H / 2**scale), ceil(W / 2**scale), 3].
    """
    if scale == 0:
        return image
    height, width = image.shape[:2]
    block = 1 << scale
    padded = cv2.copyMakeBorder(
        image, 0, -height % block, 0, -width % block, borderType=cv2.BORDER_REFLECT
    )
    size = (padded.shape[1] // block, padded.shape[0] // block)
    return cast(Image, cv2.resize(padded, size, interpolation=cv2.INTER_AREA))


def upscale(image: Image, scale: int, height: int, width: int) -> Image:
    """Undo the size of `downscale` with a Lanczos filter.

    Args:
      image: uint8 RGB [h, w, 3].
      scale: 0..3; both sides grow by exactly 2**scale, so that nothing shifts.
      height, width: size to crop to, in pixels.
    Returns:
      uint8 RGB [height, width, 3].
    """
    if scale == 0:
        return image
    size = (image.shape[1] << scale, image.shape[0] << scale)
    large = cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4)
    return cast(Image, np.ascontiguousarray(large[:height, :width]))


def crop(image: Image, box: tuple[int, int, int, int]) -> Image:
    """Cut out a box.

    Args:
      image: uint8 RGB [H, W, 3].
      box: x, y, width, height in pixels, from the top left.
    Raises:
      ImageError: the box is empty or not inside the image.
    """
    x, y, width, height = box
    if x < 0 or y < 0 or width < 1 or height < 1:
        raise ImageError(f"the box {x},{y},{width},{height} is not x,y,width,height in pixels")
    if x + width > image.shape[1] or y + height > image.shape[0]:
        raise ImageError(
            f"the box {x},{y},{width},{height} is not inside the image of "
            f"{image.shape[1]} x {image.shape[0]} pixels"
        )
    return image[y : y + height, x : x + width]


def read_picture(data: bytes) -> Image:
    """Decode a PNG, JPEG or WebP file.

    EXIF orientation is applied; all other metadata and colour profiles are dropped. Grey becomes
    RGB, 16 bits are rounded to 8, alpha is composited on white, Adobe CMYK is converted; of an
    animation, the first frame.

    Args:
      data: the whole file.
    Returns:
      uint8 RGB [H, W, 3].
    Raises:
      ImageError: another format, damaged, over `MAX_FILE_PIXELS` (checked before decoding), or a
        CMYK JPEG without Adobe's mark.
    """
    header = probe(data)
    if header.height * header.width > MAX_FILE_PIXELS:
        raise ImageError(
            f"the {header.format} file has {header.width} x {header.height} pixels; "
            f"at most {MAX_FILE_PIXELS} are read"
        )
    if header.unknown_cmyk:
        raise ImageError("a CMYK JPEG without Adobe's mark cannot be read; convert it to RGB")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"the {header.format} file cannot be decoded: {error.err}") from error
    if pixels is None:
        raise ImageError(f"the {header.format} file is damaged or cut short")
    return _orient(_to_rgb8(pixels), header.orientation)


def write_picture(image: Image, suffix: str) -> bytes:
    """Encode a PNG or JPEG file.

    Args:
      image: uint8 RGB [H, W, 3].
      suffix: one of `OUTPUT_SUFFIXES`, in any case.
    Raises:
      ImageError: another suffix.
    """
    suffix = suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise ImageError(f"cannot write {suffix or 'a file without suffix'}; use .png or .jpg")
    options = [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ImageError(f"OpenCV cannot write {suffix}")
    return bytes(data)


def _to_rgb8(pixels: NDArray[Any]) -> Image:
    """uint8 RGB of what OpenCV decoded: uint8 or uint16; grey, BGR or BGRA."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"pixels of type {pixels.dtype} cannot be read; 8 and 16 bits can")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    image = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, pixels.shape[0], _STRIP_ROWS):  # the intermediates are large
        rows = slice(top, top + _STRIP_ROWS)
        image[rows] = _strip_to_rgb8(pixels[rows])
    return image


def _strip_to_rgb8(pixels: NDArray[Any]) -> Image:
    channels = pixels.shape[2]
    if channels == 4:
        top = np.float32(np.iinfo(pixels.dtype).max)
        alpha = pixels[:, :, 3:].astype(np.float32) / top
        values = pixels[:, :, 2::-1].astype(np.float32) / top
        values = values * alpha + (np.float32(1.0) - alpha)
        return cast(Image, np.rint(values * np.float32(255.0)).astype(np.uint8))
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return cast(Image, np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[:, :, ::-1])


def _orient(image: Image, orientation: int) -> Image:
    """Turn and mirror the stored image as EXIF orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
