"""The command `fasdiff`: files and pipes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DrawPortrait, RunPython

from fasdiff_edge import Decoder, Encoder
from fasdiff_edge.cli import COMMANDS, files, main
from fasdiff_edge.imaging import read_picture, write_picture
from fasdiff_edge.models import Model

FAST = ["--threads", "1"]


@pytest.fixture
def here(
    tmp_path: Path, portrait: np.ndarray, coded: bytes, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory, with portrait.png and portrait.fsd."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "portrait.png").write_bytes(write_picture(portrait, ".png"))
    (tmp_path / "portrait.fsd").write_bytes(coded)
    return tmp_path


def error_of(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that fails; its message, after checking its form."""
    try:
        code = main(argv)
    except SystemExit as error:  # argparse
        code = error.code
    captured = capfd.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("fasdiff: error: "), captured.err
    return captured.err.removeprefix("fasdiff: error: ").rstrip("\n")


# -- encode and decode -----------------------------------------------------------------------------


def test_encode_is_the_api(here: Path, portrait: np.ndarray) -> None:
    assert main(["encode", "portrait.png", "out.fsd", "--max-bytes", "500", *FAST]) == 0
    data = (here / "out.fsd").read_bytes()
    assert data == Encoder(threads=1).encode(portrait, max_bytes=500)
    assert main(["encode", "portrait.png", "out.fsd", "--quality", "10.25", *FAST]) == 0
    assert (here / "out.fsd").read_bytes()[5] == 41
    refined = ["--max-bytes", "500", "--effort", "2"]
    assert main(["encode", "portrait.png", "out.fsd", *refined, *FAST]) == 0
    expected = Encoder(threads=1, effort=2).encode(portrait, max_bytes=500)
    assert (here / "out.fsd").read_bytes() == expected != data


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.JPEG"])
def test_decode_is_the_api(here: Path, coded: bytes, name: str) -> None:
    options = ["--realism", "0.25", "--steps", "1", *FAST]
    assert main(["decode", "portrait.fsd", name, *options]) == 0
    expected = Decoder(threads=1, realism=0.25).decode(coded)
    decoded = read_picture((here / name).read_bytes())
    if name.endswith("png"):
        assert np.array_equal(decoded, expected)
    else:
        assert cv2.PSNR(decoded, expected) > 30


@pytest.mark.parametrize("chosen", ["openvino", "onnxruntime"])
def test_engine_option(here: Path, chosen: str) -> None:
    assert main(["encode", "portrait.png", "out.fsd", "--engine", chosen, *FAST]) == 0
    assert main(["decode", "out.fsd", "out.png", "--engine", chosen, *FAST]) == 0


def test_crop(here: Path, portrait: np.ndarray) -> None:
    argv = ["encode", "portrait.png", "out.fsd", "--crop", "10,20,64,48", "--quality", "20", *FAST]
    assert main(argv) == 0
    expected = Encoder(threads=1).encode(portrait[20:68, 10:74], quality=20)
    assert (here / "out.fsd").read_bytes() == expected


def test_pipes_join_the_commands(run_python: RunPython, portrait: np.ndarray) -> None:
    cli = ("-m", "fasdiff_edge.cli")
    picture = write_picture(portrait, ".png")
    coded = run_python(*cli, "encode", "-", "-", "--max-bytes", "450", *FAST, stdin=picture)
    assert coded.returncode == 0, coded.stderr
    assert 12 < len(coded.stdout) <= 450
    decoded = run_python(*cli, "decode", "-", "-", *FAST, stdin=coded.stdout)
    assert decoded.returncode == 0, decoded.stderr
    assert decoded.stdout.startswith(b"\x89PNG")
    assert read_picture(decoded.stdout).shape == portrait.shape
    info = run_python(*cli, "info", "-", "--json", stdin=coded.stdout)
    assert json.loads(info.stdout)["bytes"] == len(coded.stdout)
    assert coded.stderr == decoded.stderr == info.stderr == b""


# -- info ------------------------------------------------------------------------------------------


def test_info(
    here: Path, coded: bytes, model: Model, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["info", "portrait.fsd", "--json"]) == 0
    report = json.loads(capsysbinary.readouterr().out)
    assert report["version"] == 2
    assert report["model"] == "edge"
    assert report["model_id"] == model.manifest["model_id"] == coded[2:4].hex()
    assert (report["width"], report["height"]) == (128, 128)
    assert report["quality"] == coded[5] / 4
    assert report["check"] == "0000" + coded[6:8].hex()
    assert report["bytes"] == len(coded)
    assert report["bpp"] == pytest.approx(8 * len(coded) / 128**2, abs=1e-5)
    parts = report["parts"]
    assert list(parts)[:4] == ["header", "s", "z", "y0"]
    assert parts["header"] == 8
    assert sum(parts.values()) == pytest.approx(len(coded), abs=0.01)
    assert -1 <= parts["overhead"] <= 0.002 * len(coded) + 2

    assert main(["info", "portrait.fsd"]) == 0
    text = capsysbinary.readouterr().out.decode()
    assert f"edge ({model.manifest['model_id']})" in text
    assert "128 x 128 pixels" in text
    assert f"{len(coded)} bytes" in text or f"bytes           {len(coded)} (" in text


def test_info_needs_no_engine(run_python: RunPython, coded: bytes) -> None:
    code = (
        "import sys; sys.modules['openvino'] = sys.modules['onnxruntime'] = None\n"
        "from fasdiff_edge.cli import main; sys.exit(main(['info', '-']))"
    )
    result = run_python("-c", code, stdin=coded)
    assert result.returncode == 0, result.stderr


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"fasdiff {command}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert command in out


def test_commands_are_imported_when_asked_for(run_python: RunPython) -> None:
    code = (
        "import sys; from fasdiff_edge.cli import main\n"
        "try: main(['decode', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('fasdiff_edge.cli.')])"
    )
    loaded = run_python("-c", code).stdout.decode().splitlines()[-1]
    assert "fasdiff_edge.cli.decode" in loaded
    assert "fasdiff_edge.cli.compare" not in loaded
    assert "fasdiff_edge.cli.info" not in loaded


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["encode", "portrait.png"], "required: OUT"),
        (["encode", "portrait.png", "out", "--max-bytes", "many"], "invalid int value: 'many'"),
        (["encode", "portrait.png", "out", "--crop", "1,2,3"], "'1,2,3' is not x,y,w,h"),
        (["encode", "missing.png", "out"], "missing.png: No such file or directory"),
        (["encode", ".", "out"], ".: Is a directory"),
        (["encode", "portrait.fsd", "out"], "not an image file"),
        (["encode", "portrait.png", "out", "--crop", "100,0,64,64"], "not inside the image"),
        (["encode", "portrait.png", "out", "--crop", "0,0,16,64"], "must be 32..4096 pixels"),
        (["encode", "portrait.png", "out", "--max-bytes", "5"], "the smallest budget"),
        (["encode", "portrait.png", "out", "--quality", "64"], "quality is 64.0"),
        (["encode", "portrait.png", "out", "--engine", "gpu"], "engine is 'gpu'"),
        (["encode", "portrait.png", "out", "--threads", "0"], "threads is 0"),
        (["encode", "portrait.png", "out", "--model", "none"], "no model 'none'"),
        (["encode", "portrait.png", "no/such/out"], "no/such/out: No such file or directory"),
        (["encode", "portrait.png", "."], ".: Is a directory"),
        (["encode", "portrait.png", "portrait.png/out"], "portrait.png/out: Not a directory"),
        (["decode", "portrait.png", "out.png"], "not a FaSDiff-Edge file: it starts with 0x89"),
        (["decode", "portrait.fsd", "out.gif"], "cannot write out.gif: use .png or .jpg"),
        (["decode", "portrait.fsd", "out"], "cannot write out: use .png or .jpg"),
        (["decode", "portrait.fsd", "out.png", "--steps", "3"], "num_steps is 3"),
        (["decode", "portrait.fsd", "out.png", "--realism", "2"], "realism is 2.0"),
        (["decode", "portrait.fsd", "out.png", "--max-pixels", "100"], "over max_pixels=100"),
        (["info", "portrait.png"], "not a FaSDiff-Edge file"),
        (["info", "missing"], "missing: No such file or directory"),
    ],
)
def test_errors_are_one_line(
    here: Path, capfd: pytest.CaptureFixture[str], argv: list[str], reason: str
) -> None:
    before = sorted(here.iterdir())
    assert reason in error_of(capfd, *argv)
    assert sorted(here.iterdir()) == before, "something was left behind"


def test_damaged_pictures_are_one_line_too(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The image libraries complain on stderr; the command must not let them."""
    data = (here / "portrait.png").read_bytes()
    for name, damaged in (("cut.png", data[:2000]), ("bad.png", data[:900] + b"?" + data[901:])):
        (here / name).write_bytes(damaged)
        assert "damaged" in error_of(capfd, "encode", name, "out.fsd")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *args: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    target = str(tmp_path / "out.fsd")
    with monkeypatch.context() as patch, pytest.raises(PermissionError) as caught:
        patch.setattr("os.open", refuse)
        files.write_output(target, b"data")
    assert caught.value.filename == target, "the temporary name would only confuse"


def test_a_reader_that_went_away(here: Path, run_python: RunPython, coded: bytes) -> None:
    package = run_python("-c", "import os; print(os.environ['PYTHONPATH'])").stdout.decode().strip()
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "fasdiff_edge.cli", "decode", "portrait.fsd", "-", *FAST],
            stdout=write,
            stderr=subprocess.PIPE,
            cwd=here,
            env={**os.environ, "PYTHONPATH": package},
            timeout=600,
        )
    finally:
        os.close(write)
    assert result.returncode == 2
    assert result.stderr.decode() == "fasdiff: error: stdout: Broken pipe\n"


def test_without_stderr(here: Path, run_python: RunPython) -> None:
    code = (
        "import os, sys; from fasdiff_edge.cli import main; os.close(2)\n"
        "sys.exit(main(['encode', 'portrait.png', 'out.fsd', '--threads', '1']))"
    )
    assert run_python("-c", code).returncode == 0
    assert (here / "out.fsd").exists()


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyboardInterrupt(), "interrupted"), (MemoryError(), "out of memory")]
)
def test_interruptions_are_one_line(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    reason: str,
) -> None:
    def stop(path: str) -> bytes:
        raise error

    monkeypatch.setattr("fasdiff_edge.cli.info.read_input", stop)
    assert error_of(capfd, "info", "portrait.fsd") == reason


# -- files -----------------------------------------------------------------------------------------


def test_failed_writes_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "face.fsd"
    target.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("os.replace", fail)
        files.write_output(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    target = tmp_path / "face.fsd"
    old = os.umask(0o027)
    try:
        files.write_output(str(target), b"data")
    finally:
        os.umask(old)
    assert target.stat().st_mode & 0o777 == 0o640


def test_links_are_followed(tmp_path: Path) -> None:
    target = tmp_path / "there" / "face.fsd"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link = tmp_path / "link.fsd"
    link.symlink_to(target)
    files.write_output(str(link), b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    files.write_output(os.devnull, b"data")
    assert not os.path.isfile(os.devnull)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    files.write_output(str(pipe), b"data")
    reader.join(timeout=60)
    assert received == [b"data"]


def test_large_inputs_are_refused(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_INPUT_BYTES", 100)
    assert "more than 100 bytes" in error_of(capfd, "info", "portrait.fsd")


def test_phone_pictures(here: Path, draw_portrait: DrawPortrait) -> None:
    """A JPEG that is stored lying on its side comes out upright."""
    image = draw_portrait(64, 96)
    jpeg = write_picture(image, ".jpg")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (here / "phone.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    assert main(["encode", "phone.jpg", "phone.fsd", *FAST]) == 0
    assert main(["decode", "phone.fsd", "phone.png", *FAST]) == 0
    assert read_picture((here / "phone.png").read_bytes()).shape == (96, 64, 3)
