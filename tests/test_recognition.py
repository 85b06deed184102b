"""Encoding along a recogniser: its gradient, the chips that it looks at, and what it brings."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import reference
import torch
from conftest import DrawPortrait
from onnx import TensorProto, helper
from small_recogniser import exported, small
from torch import nn

from export.recogniser import with_gradient
from fasdiff_edge import Decoder, Encoder, Recogniser
from fasdiff_edge.engines import load_graph
from fasdiff_edge.errors import EngineError, ModelError, OptionError
from fasdiff_edge.frequency import split_bands, split_gradient
from fasdiff_edge.models import load_model
from fasdiff_edge.recognition import CHIP, TEMPLATE, _alignment, _Chip, _view
from fasdiff_edge.stages import record

MEAN, SCALE = (120.0, 110.0, 100.0), (1 / 128, 1 / 64, 1 / 100)


@pytest.fixture(scope="module")
def recogniser(recogniser_file: Path) -> Recogniser:
    return Recogniser(recogniser_file, threads=1)


@pytest.fixture
def landmarks() -> np.ndarray:
    """Of `portrait`, 128x128: where the drawing has eyes, nose and mouth."""
    return np.array([[0.39, 0.44], [0.61, 0.44], [0.5, 0.6], [0.42, 0.7], [0.58, 0.7]]) * 128


# -- the graph -------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["pool", "flatten"])
@pytest.mark.parametrize("bgr", [False, True])
def test_the_gradient_is_that_of_the_recogniser(
    tmp_path: Path, engine: str, head: str, bgr: bool
) -> None:
    net = small(head)
    plain = exported(net, tmp_path / "plain.onnx")
    whole = with_gradient(plain, MEAN, SCALE, bgr=bgr)
    random = np.random.default_rng(1)
    chip = random.uniform(0, 255, (1, 3, CHIP, CHIP)).astype(np.float32)
    towards = random.normal(size=(1, 16)).astype(np.float32)
    towards /= np.linalg.norm(towards)
    x = torch.from_numpy(chip).requires_grad_()
    mean, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, SCALE))
    taken = (x - mean) * scale
    unit = nn.functional.normalize(net(taken.flip(1) if bgr else taken))
    distance = 1 - (unit * torch.from_numpy(towards)).sum()
    distance.backward()
    assert x.grad is not None
    graph = load_graph(whole.SerializeToString(), engine, 1)
    found = graph.run({"chip": chip, "reference": towards})
    np.testing.assert_allclose(found["embedding"], unit.detach().numpy(), atol=1e-5)
    assert found["distance"].shape == (1, 1)
    assert float(found["distance"][0, 0]) == pytest.approx(float(distance.detach()), abs=1e-5)
    expected = x.grad.numpy()
    away = np.linalg.norm(found["chip_gradient"] - expected) / np.linalg.norm(expected)
    assert away < 1e-4


def test_a_recogniser_of_any_number_of_faces_is_taken(tmp_path: Path) -> None:
    axes = {"input": {0: "n"}, "output": {0: "n"}}
    names = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": axes}
    model = with_gradient(exported(small(), tmp_path / "any.onnx", **names))
    sizes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output
    }
    assert sizes["embedding"] == [1, 16]
    assert [v.name for v in model.graph.input] == ["chip", "reference"]


@pytest.mark.parametrize(
    ("node", "size", "message"),
    [
        (helper.make_node("Tanh", ["a"], ["b"]), [1, 3, 112, 112], "Tanh"),
        (helper.make_node("Relu", ["a"], ["b"]), [1, 3, 112, 112], r"not \[1, D\]"),
        (helper.make_node("Flatten", ["a"], ["b"]), [1, 3, 96, 96], "its input is"),
        (helper.make_node("Flatten", ["a"], ["b"]), [2, 3, 112, 112], "its input is"),
    ],
)
def test_what_is_no_recogniser_is_refused(
    node: onnx.NodeProto, size: list[int], message: str
) -> None:
    shapes = {"a": size, "b": None, "c": None}
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    nodes, last = [node], "b"
    if node.op_type == "Tanh":
        nodes, last = [node, helper.make_node("Flatten", ["b"], ["c"])], "c"
    graph = helper.make_graph(nodes, "g", [values["a"]], [values[last]])
    with pytest.raises(ValueError, match=message):
        with_gradient(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


# -- chips -----------------------------------------------------------------------------------------
def test_a_face_that_is_aligned_already_is_cut_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (130, 140, 3), np.uint8)
    alignment = _alignment(TEMPLATE + (9, 5))
    chip = _Chip(alignment, 130, 140).cut(image)
    np.testing.assert_allclose(chip, image[5:117, 9:121].transpose(2, 0, 1), atol=1e-3)
    mirrored = _Chip(_view(alignment, 0.0, 0.0, 0.0, 0.0, True), 130, 140).cut(image)
    np.testing.assert_allclose(mirrored, chip[:, :, ::-1], atol=1e-3)
    assert chip.dtype == np.float32 and chip.flags.c_contiguous


def test_landmarks_turned_and_enlarged_are_turned_back() -> None:
    base = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8), (0, 0), 6
    )
    turn = cv2.getRotationMatrix2D((75.0, 75.0), 20, 1.3)
    turned = cv2.warpAffine(base, turn, (150, 150), borderMode=cv2.BORDER_REPLICATE)
    points = TEMPLATE + 19
    moved = points @ turn[:, :2].T + turn[:, 2]
    chips = [_Chip(_alignment(v), 150, 150).cut(i) for v, i in ((points, base), (moved, turned))]
    middle = (slice(None), slice(30, 82), slice(30, 82))
    assert np.abs(chips[0][middle] - chips[1][middle]).mean() < 1.5


@pytest.mark.parametrize(("size", "times"), [((40, 56), 0.3), ((130, 140), 1.0), ((300, 280), 2.4)])
def test_spreading_is_the_adjoint_of_cutting(size: tuple[int, int], times: float) -> None:
    random = np.random.default_rng(2)
    alignment = _view(_alignment(TEMPLATE * times - 5), 0.2, 0.1, 3.0, -2.0, True)
    chip = _Chip(alignment, *size)
    image = random.integers(0, 256, (*size, 3), np.uint8)
    gradient = random.normal(size=(3, CHIP, CHIP)).astype(np.float32)
    assert chip.spread(gradient).shape == image.shape
    told = (chip.spread(gradient).astype(np.float64) * image).sum()
    assert told == pytest.approx((chip.cut(image).astype(np.float64) * gradient).sum(), rel=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (50, 61)])
def test_the_gradient_of_the_bands_is_that_of_the_picture(size: tuple[int, int]) -> None:
    random = np.random.default_rng(4)
    shape = split_bands(np.zeros((*size, 3), np.uint8)).shape
    before, after = random.normal(size=(2, *shape))
    gradient = random.normal(size=(*size, 3)).astype(np.float32)
    found = split_gradient(gradient)
    assert found.shape == shape and found.dtype == np.float32
    moved = reference.merge_values(after, *size) - reference.merge_values(before, *size)
    assert (found * (after - before)).sum() == pytest.approx((moved * gradient).sum(), rel=1e-4)


def test_a_picture_is_like_itself_at_any_size(recogniser: Recogniser, portrait: np.ndarray) -> None:
    large = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_CUBIC)
    points = np.array([[0.39, 0.44], [0.61, 0.44], [0.5, 0.6], [0.42, 0.7], [0.58, 0.7]]) * 256
    likeness = recogniser.likeness(large, points - 0.5)
    distance, gradient = likeness(large)
    assert abs(distance) < 1e-5
    assert gradient.shape == large.shape and np.isfinite(gradient).all()
    smaller = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    shifted = np.roll(large, 24, 1)
    assert likeness(smaller)[0] < 0.2 * likeness(shifted)[0]
    assert likeness(smaller)[1].shape == smaller.shape


# -- the encoder -----------------------------------------------------------------------------------
def test_files_that_follow_a_recogniser_are_more_alike(
    draw_portrait: DrawPortrait, landmarks: np.ndarray, recogniser: Recogniser, engine: str
) -> None:
    """Of four: one's distance is 0.4 to 1.1 times the other's, as roundings fall."""
    encoder = Encoder(engine=engine, threads=1, effort=6)
    decoder = Decoder(engine=engine, threads=1, realism=0.0)
    ratios = []
    for seed in range(4):
        portrait = draw_portrait(128, 128, seed)
        likeness = recogniser.likeness(portrait, landmarks)
        files = [encoder.encode(portrait, max_bytes=300, likeness=v) for v in (likeness, None)]
        alike, plain = (likeness(decoder.decode(data))[0] for data in files)
        ratios.append(alike / plain)
    assert sum(ratios) / len(ratios) < 0.9


@pytest.mark.parametrize("budget", [300, 700])
def test_a_file_that_follows_a_recogniser_keeps_its_budget(
    portrait: np.ndarray, landmarks: np.ndarray, recogniser: Recogniser, engine: str, budget: int
) -> None:
    likeness = recogniser.likeness(portrait, landmarks)
    encoder = Encoder(engine=engine, threads=1, effort=6)
    alike = encoder.encode(portrait, max_bytes=budget, likeness=likeness)
    assert 0.93 * budget < len(alike) <= budget
    assert alike != encoder.encode(portrait, max_bytes=budget)
    assert encoder.encode(portrait, max_bytes=budget, likeness=likeness) == alike


def test_a_function_of_the_callers_is_followed(portrait: np.ndarray) -> None:
    """How bright a corner is: asked once a pass, of what is coded."""
    dark = portrait[:32, :32].mean() - 3
    asked: list[np.ndarray] = []
    corner = (slice(0, 32), slice(0, 32))

    def darkness(decoded: np.ndarray) -> tuple[float, np.ndarray]:
        asked.append(decoded)
        gradient = np.zeros(decoded.shape, np.float32)
        gradient[corner] = 1 / 3072
        return float(decoded[corner].mean() - dark), gradient

    with record() as stages:
        plain = Encoder(threads=1, effort=5).encode(portrait, quality=20)
        darker = Encoder(threads=1, effort=5).encode(portrait, quality=20, likeness=darkness)
    assert stages["refinement"] > 0
    assert len(asked) == 5
    assert all(v.shape == portrait.shape and v.dtype == np.uint8 for v in asked)
    decoder = Decoder(threads=1, realism=0.0)
    a, b = (decoder.decode(data)[corner].mean() for data in (plain, darker))
    assert b < a - 0.5


@pytest.mark.parametrize("distance", [0.0, -1e-9])
def test_a_likeness_that_is_reached_changes_nothing(portrait: np.ndarray, distance: float) -> None:
    encoder = Encoder(threads=1, effort=2)
    found = encoder.encode(
        portrait, quality=20, likeness=lambda v: (distance, np.ones(v.shape, np.float32))
    )
    near = encoder.encode(portrait, quality=20)
    decoder = Decoder(threads=1, realism=0.0)
    away = decoder.decode(found).astype(int) - decoder.decode(near)
    assert np.square(away).mean() < 1  # the gradient of the same error, by another way


@pytest.mark.parametrize(
    "given",
    [
        None,
        1.0,
        (1.0,),
        ("a", np.zeros((128, 128, 3))),
        (np.nan, np.zeros((128, 128, 3))),
        (1.0, np.zeros((64, 64, 3))),
        (1.0, np.full((128, 128, 3), np.inf)),
    ],
)
def test_a_likeness_that_gives_something_else_is_an_error(
    portrait: np.ndarray, given: object
) -> None:
    with pytest.raises(OptionError, match="likeness gave"):
        Encoder(threads=1, effort=1).encode(portrait, quality=20, likeness=lambda _: given)  # type: ignore[arg-type, return-value]


def test_a_likeness_wants_effort(portrait: np.ndarray) -> None:
    with pytest.raises(OptionError, match="effort"):
        Encoder(threads=1).encode(portrait, likeness=lambda v: (1.0, v.astype(np.float32)))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (None, "five points"),
        ([[1, 2]] * 4, "five points"),
        ([[1, 2]] * 4 + [[np.nan, 0]], "five points"),
        ("abc", "five points"),
        ([[60, 60]] * 5, "in one place"),
        (TEMPLATE + 1000, "far from"),
        (TEMPLATE - 1000, "far from"),
    ],
)
def test_bad_landmarks(
    recogniser: Recogniser, portrait: np.ndarray, points: object, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        recogniser.likeness(portrait, points)  # type: ignore[arg-type]


def test_what_is_no_file_of_a_recogniser(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*missing\.onnx"):
        Recogniser(tmp_path / "missing.onnx")
    other = tmp_path / "other.onnx"
    other.write_bytes(load_model("edge").read("residual.onnx"))
    with pytest.raises(ModelError, match=r"export\.recogniser"):
        Recogniser(other)
    other.write_bytes(b"no graph")
    with pytest.raises(EngineError):
        Recogniser(other)
