"""What the budget search expects of latents, and how it is fitted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export_networks import small_codec

from export.fit_rate import CONSTANTS, SCALES, fit, fit_rate, measure
from export.to_onnx import export_model
from export.verify import synthetic_image
from fasdiff_edge import Encoder
from fasdiff_edge.models import Model, load_model
from fasdiff_edge.rate import estimate_bytes


def test_weights_are_found_again() -> None:
    random = np.random.default_rng(5)
    octaves = random.gamma(2.0, 40.0, (500, 6))
    positions = random.choice([256.0, 1024.0], 500)
    features = np.column_stack([octaves, np.ones(500), positions])
    planted = np.array([0.3, 0.1, 0.2, 0.05, 0.0, 0.4, 30.0, 0.05])
    size = features @ planted * np.exp(random.normal(0, 0.03, 500))
    weights, off = fit(features, size, size)
    assert len(weights) == 6 + CONSTANTS
    assert weights[:6] == pytest.approx(planted[:6], abs=0.02)
    assert off.std() < 0.04 and abs(off.mean()) < 0.01


def test_a_fit_is_what_a_model_directory_takes_and_keeps(tmp_path: Path) -> None:
    torch.manual_seed(3)
    codec = small_codec().eval()
    record = {"step": 0}
    shown = [synthetic_image(side, side, seed) for side in (64, 96) for seed in (1, 2)]
    pictures = (torch.from_numpy(p).permute(2, 0, 1)[None].float() for p in shown)
    rate = fit_rate(measure(codec, pictures))
    assert all(rate[part]["scale"] in scales for part, scales in SCALES.items())

    def export() -> Model:
        export_model(codec, tmp_path, record, name="small", min_quality=0)
        return load_model(tmp_path)

    export()
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rate": rate}))
    for model in (load_model(tmp_path), export()):
        assert model.base_rate.weights == pytest.approx(rate["base"]["weights"])
        assert model.residual_rate.scale == rate["residual"]["scale"]
    with torch.no_grad():
        codec.entropy.s_mean += 16  # another entropy model: another id
    assert "rate" not in export().manifest


@pytest.mark.parametrize("quality", [48, 80, 108])
def test_the_shipped_model_knows_its_bytes_beforehand(
    model: Model, portrait: np.ndarray, quality: int
) -> None:
    encoder = Encoder(model.directory, "onnxruntime", 1)
    latents = encoder._analyse(portrait, 0)
    base = slice(0, model.entropy.num_base)
    ((_, expected),) = estimate_bytes(
        latents.y, lambda q: model.entropy.steps(q)[base], [quality], model.base_rate
    )
    assert expected == pytest.approx(math.log(len(encoder._code(latents, quality))), abs=0.35)
