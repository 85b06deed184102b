"""The peers' fit to a budget, the contact sheet, and `fasdiff compare`."""

from __future__ import annotations

import io
from fractions import Fraction

import cv2
import numpy as np
import PIL.Image
import pytest

from fasdiff_edge import BudgetError, bitstream, contact_sheet
from fasdiff_edge.imaging import write_picture
from fasdiff_edge.peers import Peer, fit, psnr, scales_for, standard_peers

PEERS = [peer.name for peer in standard_peers()]


def png_peer(sizes: dict[int, list[int]]) -> tuple[Peer, list[tuple[int, int]]]:
    """A lossless peer whose files are padded to `sizes[side][quality]` bytes, and its calls."""
    calls: list[tuple[int, int]] = []

    def encode(image: np.ndarray, quality: float) -> bytes:
        calls.append((image.shape[0], int(quality)))
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, "PNG")
        data = buffer.getvalue()
        return data + bytes(sizes[image.shape[0]][int(quality)] - len(data))

    return Peer("padded", encode, range(len(next(iter(sizes.values()))))), calls


def flat(side: int) -> np.ndarray:
    return np.full((side, side, 3), 128, dtype=np.uint8)


def curve(side: int, count: int = 50) -> list[int]:
    return [20 * side + round(10 * 1.1**quality) for quality in range(count)]


SIDES = (16, 24, 32, 48, 64)


# --- fit ---


@pytest.mark.parametrize("budget", [600, 777, 1300, 5000, 10**6])
def test_fit_finds_the_highest_quality_that_fits(budget: int) -> None:
    peer, calls = png_peer({side: curve(side) for side in SIDES})
    result = fit(peer, flat(64), [budget])[0]
    side = int(64 * result.scale)
    best = max(quality for quality, size in enumerate(curve(side)) if size <= budget)
    assert (result.quality, len(result.data)) == (best, curve(side)[best])
    assert result.fits
    assert len(calls) == len(set(calls)), "a file was made twice"


def test_fit_takes_the_scale_with_the_best_psnr() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = {side: [20000 + side, 20100 + side] for side in SIDES}
    peer, _ = png_peer(sizes)
    assert fit(peer, image, [30000])[0].psnr == float("inf")
    # All but the smallest two are over the budget now.
    assert fit(peer, image, [20030])[0].scale == Fraction(3, 8)


def test_fit_gives_the_smallest_file_when_nothing_fits() -> None:
    sizes = {side: curve(side) for side in SIDES}
    sizes[16][3] = sizes[16][0] - 5  # not quite monotone
    peer, _ = png_peer(sizes)
    result = fit(peer, flat(64), [200])[0]
    assert (result.fits, result.scale, result.quality) == (False, Fraction(1, 4), 3)
    assert len(result.data) == sizes[16][3]


def test_fit_marks_each_budget_by_itself() -> None:
    peer, _ = png_peer({side: curve(side) for side in SIDES})
    smallest = curve(16)[0]
    results = fit(peer, flat(64), [smallest - 1, smallest])
    assert [result.fits for result in results] == [False, True]
    assert results[0].data == results[1].data


@pytest.mark.parametrize("name", PEERS)
def test_standard_peer(name: str, portrait: np.ndarray) -> None:
    peer = next(peer for peer in standard_peers() if peer.name == name)
    small, large = fit(peer, portrait, [600, 4000])
    assert len(small.data) <= 600
    assert len(large.data) <= 4000
    assert large.psnr > small.psnr > 15.0
    assert large.image.shape == portrait.shape
    assert large.psnr == psnr(portrait, large.image)
    with PIL.Image.open(io.BytesIO(large.data)) as picture:
        assert picture.format == name.upper()
        assert picture.size == tuple(round(128 * large.scale) for _ in range(2))
    assert fit(peer, portrait, [600])[0].data == small.data


def test_scales_reach_further_down_for_large_images() -> None:
    assert min(scales_for(256, 256)) == Fraction(1, 4)
    assert min(scales_for(512, 400)) == Fraction(1, 8)


def test_psnr() -> None:
    image = flat(16)
    assert psnr(image, image) == float("inf")
    assert psnr(image, image + np.uint8(5)) == pytest.approx(10 * np.log10(255**2 / 25))
    with pytest.raises(ValueError, match="shapes"):
        psnr(image, flat(8))


# --- the sheet ---


class StandIn:
    """Our codec, without a model: needs at least 100 bytes, returns a blurred image."""

    def __init__(self, image: np.ndarray) -> None:
        self.decoded = cv2.GaussianBlur(image, (0, 0), 2.0)

    def encode(self, image: np.ndarray, *, max_bytes: int) -> bytes:
        if max_bytes < 100:
            raise BudgetError(max_bytes, 100)
        height, width = image.shape[:2]
        header = bitstream.Header(7, height, width, scale=1, quality=40)
        return bitstream.pack(header, bytes(bitstream.payload_limit(height, width, max_bytes)))

    def decode(self, data: bytes) -> np.ndarray:
        return self.decoded


def sheet_rows(image: np.ndarray, budgets: list[int]) -> list[contact_sheet.Row]:
    codec = StandIn(image)
    coded = contact_sheet.code(image, budgets, codec, codec)  # type: ignore[arg-type]
    return contact_sheet.compare("face.png", image, budgets, coded)


def test_rows_name_codec_bytes_scale_and_psnr(portrait: np.ndarray) -> None:
    rows = sheet_rows(portrait, [60, 2000])
    assert [row.heading for row in rows] == ["face.png in 60 bytes", "face.png in 2000 bytes"]
    for row in rows:
        names = [cell.title.split(",")[0] for cell in row.cells]
        assert names == ["original", "FaSDiff-Edge", *PEERS]
        assert np.array_equal(row.cells[0].image, portrait)
        assert all("dB" in cell.detail for cell in row.cells[1:])
    over, within = rows
    assert over.cells[1].title == "FaSDiff-Edge, 100 bytes, its smallest"
    assert all("its smallest" in cell.title for cell in over.cells[1:])
    assert not any("its smallest" in cell.title for cell in within.cells)
    decoded = StandIn(portrait).decoded
    assert within.cells[1].detail == f"coded at 1/2 size, {psnr(portrait, decoded):.2f} dB"


def test_draw_places_every_image_whole(portrait: np.ndarray) -> None:
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(200, 300), (40, 33)]]
    cells = [contact_sheet.Cell(image, "title", "detail") for image in images]
    row = contact_sheet.Row("heading", cells)
    sheet = contact_sheet.draw([row, contact_sheet.Row("another", cells[:1])])
    assert sheet.dtype == np.uint8
    for image in images:
        height, width = image.shape[:2]
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width, 3))[:, :, 0]
        corners = np.argwhere((windows[:, :, 0, 0] == image[0, 0]).all(axis=-1))
        assert any(np.array_equal(windows[y, x], image) for y, x in corners)
    blank = contact_sheet.Cell(images[0], "", "")
    plain = contact_sheet.draw(
        [contact_sheet.Row("", [blank, cells[1]]), contact_sheet.Row("", [blank])]
    )
    assert plain.shape == sheet.shape
    assert (plain != sheet).any(), "no text was drawn"


def test_draw_shrinks_large_images() -> None:
    cell = contact_sheet.Cell(flat(1500), "title", "detail")
    assert contact_sheet.draw([contact_sheet.Row("heading", [cell])]).shape[1] < 600


def test_same_input_same_sheet(portrait: np.ndarray) -> None:
    first, second = (contact_sheet.draw(sheet_rows(portrait, [500])) for _ in range(2))
    assert np.array_equal(first, second)


# --- the command ---


def test_compare_command(tmp_path, portrait, draw_portrait, run_python) -> None:
    (tmp_path / "a.png").write_bytes(write_picture(portrait, ".png"))
    (tmp_path / "b.jpg").write_bytes(write_picture(draw_portrait(96, 64, seed=3), ".jpg"))
    command = ["-m", "fasdiff_edge.cli", "compare", "a.png", "b.jpg", "--budgets", "500"]
    done = run_python(*command, "--output", "sheet.png")
    assert done.returncode == 0, done.stderr.decode()
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 128 + 96  # a row for each picture
    assert sheet.shape[1] > 5 * 128
    again = run_python(*command, "--output", "-")
    assert again.stdout == (tmp_path / "sheet.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.png", "--budgets", "300,x"], "in bytes"),
        (["a.png", "--budgets", "0"], "at least 1 byte"),
        (["a.png", "--output", "sheet.gif"], "use .png or .jpg"),
        (["missing.png"], "No such file"),
        ([], "required"),
    ],
)
def test_compare_command_refuses(arguments, reason, tmp_path, portrait, run_python) -> None:
    (tmp_path / "a.png").write_bytes(write_picture(portrait, ".png"))
    done = run_python("-m", "fasdiff_edge.cli", "compare", *arguments)
    assert done.returncode == 2
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fasdiff: error:")
    assert reason in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_compare_command_explains_missing_pillow(tmp_path, portrait, run_python) -> None:
    (tmp_path / "a.png").write_bytes(write_picture(portrait, ".png"))
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "from fasdiff_edge.cli import main; sys.exit(main(['compare', 'a.png']))"
    )
    done = run_python("-c", script)
    assert done.returncode == 2
    assert "pip install 'fasdiff-edge[demo]'" in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1
