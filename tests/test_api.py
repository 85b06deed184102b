"""Encoder and Decoder with the shipped model, on both engines."""

from __future__ import annotations

import json
import math
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import DrawPortrait, RunPython

from fasdiff_edge import BitstreamError, BudgetError, Decoder, Encoder, ModelError, OptionError
from fasdiff_edge.api import graph_shapes
from fasdiff_edge.bitstream import Header, pack, payload_limit, unpack
from fasdiff_edge.models import Model


def header_of(data: bytes) -> Header:
    return unpack(data)[0]


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(32, 32), (33, 47), (100, 37), (37, 100), (128, 96), (160, 257), (32, 400)]
)
def test_any_size_comes_back(
    encoder: Encoder, decoder: Decoder, draw_portrait: DrawPortrait, size: tuple[int, int]
) -> None:
    image = draw_portrait(*size)
    data = encoder.encode(image, quality=40)
    header = header_of(data)
    assert (header.height, header.width) == size
    assert (header.scale, header.quality) == (0, 160)
    decoded = decoder.decode(data)
    assert decoded.dtype == np.uint8
    assert decoded.shape == image.shape
    assert decoded.flags.c_contiguous


def test_the_picture_is_recognisable(
    encoder: Encoder, engine: str, draw_portrait: DrawPortrait
) -> None:
    """A file is worth far more than its average colour, and more bytes are worth more."""
    image = draw_portrait(192, 192)
    decoder = Decoder(engine=engine, threads=1, realism=0.0)
    flat = np.broadcast_to(np.rint(image.mean(axis=(0, 1))).astype(np.uint8), image.shape)
    values = [
        cv2.PSNR(image, decoder.decode(encoder.encode(image, quality=quality)))
        for quality in (10, 35, 60)
    ]
    assert values[0] > cv2.PSNR(image, np.ascontiguousarray(flat)) + 3.0
    assert values[0] + 0.5 < values[1] < values[2] - 0.5


def test_same_bytes_same_picture(
    encoder: Encoder, decoder: Decoder, engine: str, portrait: np.ndarray
) -> None:
    data = encoder.encode(portrait, max_bytes=500)
    assert encoder.encode(portrait, max_bytes=500) == data
    decoded = decoder.decode(data)
    assert np.array_equal(decoder.decode(data), decoded)
    assert np.array_equal(Decoder(engine=engine, threads=1).decode(data), decoded)
    assert np.array_equal(decoder.decode(bytearray(data)), decoded)
    assert np.array_equal(decoder.decode(memoryview(data)), decoded)


@pytest.mark.parametrize("quality", [12, 32, 50])
@pytest.mark.parametrize("realism", [0.0, 1.0])
def test_a_file_of_one_engine_is_read_by_the_other(
    portrait: np.ndarray, quality: float, realism: float
) -> None:
    for writer, reader in (("openvino", "onnxruntime"), ("onnxruntime", "openvino")):
        data = Encoder(engine=writer, threads=1).encode(portrait, quality=quality)
        one, other = (
            Decoder(engine=name, threads=1, realism=realism).decode(data)
            for name in (reader, writer)
        )
        assert cv2.PSNR(one, other) >= 45


def test_layout_of_the_array_does_not_matter(encoder: Encoder, portrait: np.ndarray) -> None:
    data = encoder.encode(portrait)
    bgr = np.ascontiguousarray(portrait[:, :, ::-1])
    assert encoder.encode(bgr[:, :, ::-1]) == data
    assert encoder.encode(np.asfortranarray(portrait)) == data
    wide = np.zeros((128, 256, 3), np.uint8)
    wide[:, ::2] = portrait
    assert encoder.encode(wide[:, ::2]) == data


def test_the_image_is_not_written_to(encoder: Encoder, draw_portrait: DrawPortrait) -> None:
    image = draw_portrait(50, 60)
    kept = image.copy()
    encoder.encode(image, max_bytes=200)
    assert np.array_equal(image, kept)


def test_realism_is_a_dial_on_the_same_bytes(
    coded: bytes, engine: str, portrait: np.ndarray
) -> None:
    pictures = [
        Decoder(engine=engine, threads=1, realism=realism).decode(coded)
        for realism in (0, 0.5, 1.0)
    ]
    assert not np.array_equal(pictures[0], pictures[2])
    step = [np.abs(pictures[0].astype(int) - picture).mean() for picture in pictures]
    assert step[0] < step[1] < step[2]
    # The mean of what the bytes allow is at least as close to the original as a sample.
    assert cv2.PSNR(portrait, pictures[0]) >= cv2.PSNR(portrait, pictures[2])


def test_smallest_codings(encoder: Encoder, decoder: Decoder, draw_portrait: DrawPortrait) -> None:
    """Every scale of the smallest image, down to 4 x 4 coded pixels."""
    image = draw_portrait(32, 32)
    for scale, latent in ((0, (2, 2)), (1, (1, 1)), (2, (1, 1)), (3, (1, 1))):
        latents = encoder._analyse(image, scale)
        data = encoder._pack(image, scale, 100, encoder._code(latents, 100))
        header = header_of(data)
        assert header.coded_size == (32 >> scale, 32 >> scale)
        assert header.latent_size == latent
        assert decoder.decode(data).shape == image.shape


# -- quality and budget ----------------------------------------------------------------------------


def budget_error(encoder: Encoder, image: np.ndarray, max_bytes: int) -> BudgetError:
    with pytest.raises(BudgetError) as caught:
        encoder.encode(image, max_bytes=max_bytes)
    return caught.value


def test_default_quality_is_32(encoder: Encoder, portrait: np.ndarray) -> None:
    data = encoder.encode(portrait)
    assert header_of(data).quality == 4 * 32
    assert data == encoder.encode(portrait, quality=32)


@pytest.mark.parametrize("quality", [0, 0.25, 31.75, np.float32(12.5), np.int64(7), 63])
def test_quality_is_in_quarter_steps(
    encoder: Encoder, portrait: np.ndarray, quality: float
) -> None:
    header = header_of(encoder.encode(portrait, quality=quality))
    assert header.quality == 4 * quality
    assert header.scale == 0


@pytest.mark.parametrize(
    "quality", [-0.25, 63.25, 0.1, 31.99, float("nan"), float("inf"), "32", True, 1j]
)
def test_refused_quality(encoder: Encoder, portrait: np.ndarray, quality: Any) -> None:
    with pytest.raises(OptionError, match="quality is"):
        encoder.encode(portrait, quality=quality)


@pytest.mark.parametrize("max_bytes", [0, -1, 800.0, "800", True, float("nan")])
def test_refused_budget(encoder: Encoder, portrait: np.ndarray, max_bytes: Any) -> None:
    with pytest.raises(OptionError, match="max_bytes is"):
        encoder.encode(portrait, max_bytes=max_bytes)


def test_budgets_are_kept_and_used(encoder: Encoder, draw_portrait: DrawPortrait) -> None:
    used = []
    for seed in range(3):
        image = draw_portrait(160, 128 + 16 * seed, seed)
        ceiling = len(encoder.encode(image, quality=63))
        for budget in (250, 300, 417, 600, 800, 1200, 1999):
            data = encoder.encode(image, max_bytes=budget)
            assert len(data) <= budget
            if budget < ceiling:
                used.append(len(data) / budget)
    assert len(used) >= 12
    assert np.mean(used) >= 0.97


def test_a_budget_is_the_largest_quality_that_fits(
    encoder: Encoder, draw_portrait: DrawPortrait
) -> None:
    image = draw_portrait(128, 160)
    budgets = [len(encoder.encode(image, quality=quality)) + 3 for quality in (15, 30, 45)]
    for budget in budgets:
        data = encoder.encode(image, max_bytes=budget)
        header = header_of(data)
        assert header.scale == 0
        assert data == encoder.encode(image, quality=header.quality / 4)
        assert len(encoder.encode(image, quality=(header.quality + 1) / 4)) > budget


def test_more_than_needed_gives_the_highest_quality(encoder: Encoder, portrait: np.ndarray) -> None:
    assert encoder.encode(portrait, max_bytes=10**7) == encoder.encode(portrait, quality=63)


def test_quality_and_budget_both_bind(encoder: Encoder, portrait: np.ndarray) -> None:
    low = encoder.encode(portrait, quality=4)
    assert encoder.encode(portrait, quality=4, max_bytes=len(low)) == low
    assert encoder.encode(portrait, quality=4, max_bytes=10**6) == low
    tight = encoder.encode(portrait, quality=63, max_bytes=500)
    assert tight == encoder.encode(portrait, max_bytes=500)
    assert len(tight) <= 500


def test_more_steps_keep_what_a_residual_tells(
    encoder: Encoder, engine: str, portrait: np.ndarray
) -> None:
    """Later steps draw none of it again, of which there is much at this quality."""
    data = encoder.encode(portrait, quality=50)
    one, two, four = (
        cv2.PSNR(portrait, Decoder(engine=engine, threads=1, num_steps=steps).decode(data))
        for steps in (1, 2, 4)
    )
    assert one > 36 and min(two, four) > one - 0.2


@pytest.mark.parametrize("floor", [0.0, 6.25, 20.0])
def test_small_budgets_go_down_the_scales(
    engine: str,
    decoder: Decoder,
    draw_portrait: DrawPortrait,
    model: Model,
    tmp_path: Path,
    floor: float,
) -> None:
    """Whatever min_quality_before_downscale the model has: first the scale, then the quality."""
    shutil.copytree(model.directory, tmp_path / "model")
    manifest = {**model.manifest, "min_quality_before_downscale": floor}
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    encoder = Encoder(tmp_path / "model", engine=engine, threads=1)
    image = draw_portrait(200, 256)

    smallest = budget_error(encoder, image, 11).smallest
    lowest = [len(encoder._code(encoder._analyse(image, scale), 0)) for scale in range(4)]
    payload = payload_limit(200, 256, smallest)
    assert payload <= min(lowest), "every scale counts, at any quality"
    # a file may be smaller at a higher quality, within a step of it, and fit where it did not
    least = int(4 * floor)
    analysed = [encoder._analyse(image, scale) for scale in range(3)]
    lengths = [[len(encoder._code(a, q)) for q in range(least, least + 5)] for a in analysed]
    scales = []
    for budget in (2500, 600, 250, 120, 90, 60, smallest + 5, smallest):
        if budget < smallest:
            continue
        data = encoder.encode(image, max_bytes=budget)
        header = header_of(data)
        scales.append(header.scale)
        assert len(data) <= budget
        assert decoder.decode(data).shape == image.shape
        payload = payload_limit(200, 256, budget)
        acceptable = [scale for scale in range(3) if min(lengths[scale]) <= payload]
        if acceptable:
            assert header.scale == acceptable[0]
            assert header.quality >= 4 * floor
        else:
            assert header.scale == 3 or lowest[3] > payload
    assert scales[0] == 0
    assert max(scales) >= (1 if floor else 0)


def test_larger_pictures_want_more_quality(model: Model) -> None:
    """The least quality grows with the octaves above 256x256, and falls nowhere below that."""
    grown = replace(model, min_quality_before_downscale=2.5, min_quality_per_octave=16.0)
    assert [grown.min_quality(*size) for size in ((64, 64), (256, 256), (128, 512))] == [10] * 3
    assert grown.min_quality(512, 512) == 74
    assert 10 < grown.min_quality(300, 300) < 74 < grown.min_quality(512, 600)
    assert grown.min_quality(4096, 4096) == grown.entropy.residual_from - 1, "all of the base"
    assert replace(model, min_quality_per_octave=0.0).min_quality(2048, 2048) == math.ceil(
        4 * model.min_quality_before_downscale
    )


def test_scales_that_plainly_do_not_fit_are_not_analysed(
    encoder: Encoder, draw_portrait: DrawPortrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file is what it is when all are."""
    image = draw_portrait(512, 480)
    sides: list[int] = []
    run = encoder._graph.run

    def seen(arrays: Any) -> Any:
        sides.append(4 * arrays["bands"].shape[2])
        return run(arrays)

    monkeypatch.setattr(encoder._graph, "run", seen)

    def encoded(budget: int) -> tuple[bytes, list[int]]:
        sides.clear()
        return encoder.encode(image, max_bytes=budget), sides[:]

    full = encoder._analyse(image, 0)
    floor = len(encoder._code(full, encoder._model.min_quality(512, 480)))
    plenty, scarce = 4 * floor, floor // 3
    short = {budget: encoded(budget) for budget in (plenty, scarce)}
    assert [header_of(data).scale for data, _ in short.values()] == [0, 1]
    assert [found for _, found in short.values()] == [[512], [256]]
    monkeypatch.setattr(encoder, "_first_to_try", lambda *_: 0)
    long = {budget: encoded(budget) for budget in (plenty, scarce)}
    assert [found for _, found in long.values()] == [[512], [512, 256]]
    assert [data for data, _ in long.values()] == [data for data, _ in short.values()]


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (64, 300)])
def test_the_smallest_budget_is_named_and_works(
    encoder: Encoder, draw_portrait: DrawPortrait, size: tuple[int, int]
) -> None:
    image = draw_portrait(*size)
    error = budget_error(encoder, image, 1)
    assert error.max_bytes == 1
    assert error.smallest >= 8
    assert f"{error.smallest} bytes" in str(error)
    assert len(encoder.encode(image, max_bytes=error.smallest)) <= error.smallest
    assert budget_error(encoder, image, error.smallest - 1).smallest == error.smallest
    lowest = [len(encoder._code(encoder._analyse(image, scale), 0)) for scale in range(4)]
    assert payload_limit(*size, error.smallest) <= min(lowest)


def test_extreme_pictures_fit_too(encoder: Encoder, decoder: Decoder) -> None:
    random = np.random.default_rng(4)
    noise = random.integers(0, 256, (96, 96, 3), np.uint8)
    checks = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for image in (
        np.zeros((96, 96, 3), np.uint8),
        np.full((96, 96, 3), 255, np.uint8),
        noise,
        np.repeat(checks[:, :, None], 3, axis=2),
    ):
        data = encoder.encode(image, max_bytes=300)
        assert len(data) <= 300
        assert decoder.decode(data).shape == image.shape
        assert decoder.decode(encoder.encode(image, quality=63)).shape == image.shape


# -- refusals of the decoder -----------------------------------------------------------------------


def test_max_pixels(coded: bytes, engine: str) -> None:
    assert Decoder(engine=engine, max_pixels=128 * 128).decode(coded).shape == (128, 128, 3)
    with pytest.raises(BitstreamError, match="128 x 128 pixels, over max_pixels=16383"):
        Decoder(engine=engine, max_pixels=128 * 128 - 1).decode(coded)


def test_unknown_model_is_named(decoder: Decoder, coded: bytes, model: Model) -> None:
    header, _, payload = unpack(coded)
    other = header.model_id ^ 0x0101
    foreign = Header(other, header.height, header.width, header.scale, header.quality)
    with pytest.raises(ModelError) as caught:
        decoder.decode(pack(foreign, payload))
    assert f"{other:04x}" in str(caught.value)
    assert f"edge ({model.entropy.model_id:04x})" in str(caught.value)


def test_a_file_of_release_0_1_0_is_refused_by_the_id_of_its_model(
    decoder: Decoder, coded: bytes
) -> None:
    header, _, payload = unpack(coded)
    old = Header(0x4F63, header.height, header.width, header.scale, header.quality)
    with pytest.raises(ModelError, match="the file needs model 4f63"):
        decoder.decode(pack(old, payload))


def test_every_truncation_is_refused(decoder: Decoder, coded: bytes) -> None:
    for length in range(len(coded)):
        with pytest.raises(BitstreamError):
            decoder.decode(coded[:length])


def test_resealed_truncations_reach_the_range_decoder(decoder: Decoder, coded: bytes) -> None:
    header, _, payload = unpack(coded)
    for length in range(0, len(payload) - 12, 41):
        with pytest.raises(BitstreamError, match="damaged payload"):
            decoder.decode(pack(header, payload[:length]))
    for tail in (b"\0" * 3, b"face" * 20):
        with pytest.raises(BitstreamError, match="damaged payload"):
            decoder.decode(pack(header, payload + tail))


def test_resealed_damage_gives_a_picture_or_our_error(decoder: Decoder, coded: bytes) -> None:
    random = np.random.default_rng(6)
    header, _, payload = unpack(coded)
    refused = 0
    for _ in range(60):
        damaged = bytearray(payload)
        damaged[int(random.integers(len(damaged)))] ^= 1 << int(random.integers(8))
        try:
            decoded = decoder.decode(pack(header, bytes(damaged)))
        except BitstreamError:
            refused += 1
        else:
            assert decoded.shape == (128, 128, 3)
    assert refused > 0


@pytest.mark.parametrize("data", [None, "text", 12, [1, 2]])
def test_only_bytes_are_decoded(decoder: Decoder, data: Any) -> None:
    with pytest.raises(BitstreamError, match="expected bytes"):
        decoder.decode(data)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_steps": 3}, "num_steps is 3; the model edge supports 1, 2, 4"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"realism": -0.1}, "realism is -0.1"),
        ({"realism": 1.5}, "realism is 1.5"),
        ({"realism": float("nan")}, "realism is nan"),
        ({"realism": "sharp"}, "realism is 'sharp'"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"size": 256}, r"size is 256; \(height, width\) must be 32\.\.4096 pixels"),
        ({"size": (256,)}, r"size is \(256,\)"),
        ({"size": (256, 5000)}, r"size is \(256, 5000\)"),
        ({"size": (256, 31.5)}, r"size is \(256, 31.5\)"),
        ({"engine": "gpu"}, "engine is 'gpu'"),
    ],
)
def test_refused_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        Decoder(**options)


# -- one size ----


@pytest.mark.parametrize("quality", [16, 50])
def test_a_codec_made_for_a_size_agrees_and_takes_others(
    encoder: Encoder, engine: str, draw_portrait: DrawPortrait, quality: float
) -> None:
    """As engines do; and at its own size it gives the same however often it is asked."""
    of_size = Encoder(engine=engine, threads=1, size=(100, 75))
    one, other = (Decoder(engine=engine, threads=1, size=size) for size in (None, (100, 75)))
    for height, width in ((100, 75), (64, 80), (100, 75)):
        image = draw_portrait(height, width)
        files = [codec.encode(image, quality=quality) for codec in (encoder, of_size)]
        assert len(files[1]) == pytest.approx(len(files[0]), rel=0.02)
        assert of_size.encode(image, quality=quality) == files[1]
        for data in files:
            decoded = other.decode(data)
            assert decoded.shape == image.shape
            assert cv2.PSNR(one.decode(data), decoded) >= 45
            assert np.array_equal(other.decode(data), decoded)


def test_a_size_over_the_format_s_limit_is_that_of_its_coded_picture(
    engine: str, model: Model
) -> None:
    Decoder(engine=engine, threads=1, size=(4096, 4096))
    sizes = [one["bands"] for one in graph_shapes(model.entropy, (4096, 4096))]
    assert sizes == [(1, 48, 4096 >> scale >> 2, 4096 >> scale >> 2) for scale in (1, 2, 3)]


# -- threads and memory ----------------------------------------------------------------------------


def test_objects_are_shared_between_threads(
    encoder: Encoder, decoder: Decoder, draw_portrait: DrawPortrait
) -> None:
    images = [draw_portrait(64 + 16 * seed, 96, seed) for seed in range(4)]
    files = [encoder.encode(image, max_bytes=350) for image in images]
    pictures = [decoder.decode(data) for data in files]
    wrong: list[str] = []
    start = threading.Barrier(2 * len(images))

    def work(index: int) -> None:
        start.wait()
        for _ in range(3):
            if encoder.encode(images[index], max_bytes=350) != files[index]:
                wrong.append(f"bytes of {index}")
            if not np.array_equal(decoder.decode(files[index]), pictures[index]):
                wrong.append(f"picture of {index}")

    threads = [threading.Thread(target=work, args=(n % len(images),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


MEMORY = """
import resource, sys, numpy as np
from fasdiff_edge import Decoder, Encoder
image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
image = np.ascontiguousarray(np.tile(image, (32, 32, 1)))
assert image.shape == (4096, 4096, 3)
if sys.argv[2] == "encode":
    data = Encoder(engine=sys.argv[1], threads=1).encode(image, quality=8)
    open("large.fsd", "wb").write(data)
else:
    assert Decoder(engine=sys.argv[1], threads=1).decode(open("large.fsd", "rb").read()).shape \\
        == image.shape
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_the_largest_image_stays_under_two_gigabytes(engine: str, run_python: RunPython) -> None:
    for direction in ("encode", "decode"):
        result = run_python("-c", MEMORY, engine, direction)
        assert result.returncode == 0, result.stderr.decode()
        assert int(result.stdout) < 2_000_000_000, direction
