"""The examples, on a generated video and a picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DrawPortrait, RunPython

from fasdiff_edge import Decoder
from fasdiff_edge.imaging import write_picture


@pytest.fixture
def clip(tmp_path: Path, draw_portrait: DrawPortrait) -> Path:
    """Four frames of 160 x 120."""
    path = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (160, 120))
    assert video.isOpened()
    for seed in range(4):
        video.write(draw_portrait(120, 160, seed)[:, :, ::-1].copy())
    video.release()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames
        frames.append(frame)


def test_camera_loop_to_a_directory(repository: Path, run_python: RunPython, clip: Path) -> None:
    script = repository / "examples" / "camera_loop.py"
    result = run_python(
        script, "--source", clip, "--box", "30,10,96,100", "--max-bytes", "400",
        "--frames", "3", "--save", "frames",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    assert len(result.stdout.splitlines()) == 3
    names = sorted(path.name for path in (clip.parent / "frames").iterdir())
    assert names == [f"{index:05}.{suffix}" for index in range(3) for suffix in ("fsd", "png")]
    decoder = Decoder(threads=1)
    for index in range(3):
        data = (clip.parent / "frames" / f"{index:05}.fsd").read_bytes()
        assert len(data) <= 400
        assert decoder.decode(data).shape == (100, 96, 3)
        picture = cv2.imread(str(clip.parent / "frames" / f"{index:05}.png"))
        original = frames_of(clip)[index][10:110, 30:126]
        assert cv2.PSNR(picture, np.ascontiguousarray(original)) > 12


def test_camera_loop_to_a_video(repository: Path, run_python: RunPython, clip: Path) -> None:
    script = repository / "examples" / "camera_loop.py"
    result = run_python(script, "--source", clip, "--save", "decoded.avi")
    assert result.returncode == 0, result.stderr.decode()
    decoded = frames_of(clip.parent / "decoded.avi")
    assert [frame.shape for frame in decoded] == [(120, 160, 3)] * 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--source", "missing.avi"], "cannot open missing.avi"),
        (["--source", "clip.avi", "--max-bytes", "3"], "frame 0: the image does not fit in 3"),
        (["--source", "clip.avi", "--box", "0,0,16,16"], "must be 32..4096 pixels"),
    ],
)
def test_camera_loop_errors(
    repository: Path, run_python: RunPython, clip: Path, options: list[str], reason: str
) -> None:
    result = run_python(repository / "examples" / "camera_loop.py", *options)
    assert result.returncode == 1
    assert reason in result.stderr.decode().splitlines()[-1]


def test_kiosk(
    repository: Path, run_python: RunPython, tmp_path: Path, portrait: np.ndarray
) -> None:
    (tmp_path / "face.png").write_bytes(write_picture(portrait, ".png"))
    result = run_python(
        repository / "examples" / "kiosk.py", "face.png", "card.fsd",
        "--max-bytes", "700", "--preview", "preview.png",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    data = (tmp_path / "card.fsd").read_bytes()
    assert len(data) <= 700
    assert f"card.fsd: {len(data)} bytes" in result.stdout.decode()
    preview = cv2.imread(str(tmp_path / "preview.png"))
    assert np.array_equal(preview[:, :, ::-1], Decoder().decode(data))


def test_kiosk_explains_a_budget_that_is_too_small(
    repository: Path, run_python: RunPython, tmp_path: Path, portrait: np.ndarray
) -> None:
    (tmp_path / "face.png").write_bytes(write_picture(portrait, ".png"))
    script = repository / "examples" / "kiosk.py"
    result = run_python(script, "face.png", "card.fsd", "--max-bytes", "9")
    assert result.returncode == 1
    assert b"the smallest budget that can be met is" in result.stderr
    assert not (tmp_path / "card.fsd").exists()
    missing = run_python(script, "missing.png", "card.fsd")
    assert missing.returncode == 1
    assert b"cannot read missing.png" in missing.stderr


def test_the_gallery(repository: Path, run_python: RunPython, tmp_path: Path) -> None:
    result = run_python(repository / "scripts" / "gallery.py", "--output", "gallery")
    assert result.returncode == 0, result.stderr.decode()
    by_budget, by_steps = (
        cv2.imread(str(tmp_path / "gallery" / name)) for name in ("astronaut.png", "steps.png")
    )
    assert by_budget is not None and by_budget.shape[1] > 5 * 256 and by_budget.shape[0] > 4 * 256
    assert by_steps is not None and by_steps.shape[1] > 4 * 256 and by_steps.shape[0] > 3 * 256
