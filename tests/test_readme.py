"""What the README tells a newcomer to type works, and what it links to exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from fasdiff_edge.imaging import write_picture


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_python_example(readme: str, run_python) -> None:
    examples = blocks(readme, "python")
    assert examples
    done = run_python("-c", examples[0])
    assert done.returncode == 0, done.stderr.decode()
    size, height, width = map(int, re.findall(rb"\d+", done.stdout)[:3])
    budget = int(re.search(r"max_bytes=(\d+)", examples[0]).group(1))
    assert 0 < size <= budget
    assert (height, width) == (176, 176)


def test_the_example_with_a_recogniser(readme: str, run_python, recogniser_file: Path) -> None:
    (example,) = [block for block in blocks(readme, "python") if "Recogniser" in block]
    start = "import skimage.data; image = skimage.data.astronaut()[20:196, 136:312]\n"
    start += "landmarks = [[64, 70], [108, 70], [86, 96], [68, 118], [104, 118]]\n"
    example = start + example.replace("recogniser.onnx", str(recogniser_file))
    done = run_python("-c", example + "print(len(data))")
    assert done.returncode == 0, done.stderr.decode()
    assert 250 < int(done.stdout) <= 300


def test_the_example_is_short(readme: str) -> None:
    lines = [line for line in blocks(readme, "python")[0].splitlines() if line.strip()]
    assert len(lines) <= 8


def test_commands(readme: str, tmp_path: Path, portrait: np.ndarray, run_python) -> None:
    (tmp_path / "face.png").write_bytes(write_picture(portrait, ".png"))
    commands = [
        shlex.split(line, comments=True)
        for block in blocks(readme, "sh")
        for line in block.splitlines()
        if line.startswith("fasdiff ")
    ]
    assert {command[1] for command in commands} == {"encode", "decode", "info", "compare", "bench"}
    for command in commands:
        done = run_python("-m", "fasdiff_edge.cli", *command[1:])
        assert done.returncode == 0, (command, done.stderr.decode())


def test_make_targets_exist(readme: str, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    documents = readme + (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(blocks(documents, "sh"))))
    assert named
    assert named <= targets


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_exist(document: str, repository: Path) -> None:
    text = (repository / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [link for link in links if "://" not in link and not (repository / link).exists()]
    assert missing == []
