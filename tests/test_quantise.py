"""INT8: ranges, training with the rounding, the graphs of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_export_networks import small_codec

from export.data import read_index
from export.equalise import equalise, streams
from export.networks import Codec, split_bands
from export.pack import pack
from export.quantise import calibrate, look_at, quantised_copy, quantised_state, to_qdq
from export.quantised import (
    ACTIVATION_MAX,
    WEIGHT_MAX,
    ActivationQuantiser,
    QuantisedConv2d,
    SplitConv2d,
)
from export.restore import restored
from export.to_onnx import GRAPHS, export_model, load_codec
from export.train import Settings, Trainer
from export.train_rounding import RoundingSettings, RoundingTrainer
from export.verify import differences, synthetic_image, tolerance


def images(count: int, size: int = 64) -> torch.Tensor:
    found = [synthetic_image(size, size, seed).transpose(2, 0, 1) for seed in range(count)]
    return torch.from_numpy(np.stack(found)).float()


def calibrated() -> tuple[Codec, Codec]:
    """A small float codec and its INT8 version."""
    plain = small_codec()
    codec = quantised_copy(plain)
    torch.manual_seed(3)
    calibrate(codec, [images(8)])
    return plain, codec


def test_an_activation_has_256_levels_around_zero() -> None:
    quantiser = ActivationQuantiser()
    quantiser.seen = []
    x = torch.cat([torch.linspace(-6, 6, 4001), torch.zeros(9)])
    assert torch.equal(quantiser(x), x)
    quantiser.settle()
    rounded = quantiser(x).detach()
    assert 250 <= len(rounded.unique()) <= 256
    assert (rounded[x == 0] == 0).all()
    step = float(quantiser.step().detach())
    assert step == pytest.approx(6 / 127, rel=0.01)
    assert (rounded - x).abs().max() <= 0.51 * step
    assert quantiser(torch.tensor([100.0, -100.0])).tolist() == pytest.approx([6, -6], abs=0.06)


def test_a_range_that_saw_nothing_is_an_error() -> None:
    quantiser = ActivationQuantiser()
    quantiser.seen = []
    with pytest.raises(ValueError, match="nothing was seen"):
        quantiser.settle()


def test_products_cannot_saturate_sixteen_bits() -> None:
    """Bytes moved up to be unsigned, by signed ones, in pairs, as CPUs without VNNI multiply."""
    assert 2 * 255 * WEIGHT_MAX < 2**15 and ACTIVATION_MAX + 128 == 255


def test_eight_bits_change_little() -> None:
    """Latents, before a rounding may make a whole symbol of it, and what the same latents give."""
    plain, codec = calibrated()
    bands = split_bands(images(2))
    q, noise = torch.tensor([60, 90]), torch.zeros_like(bands)

    def error(found: torch.Tensor, expected: torch.Tensor) -> float:
        assert not torch.equal(found, expected)
        return float((found - expected).square().mean() / expected.square().mean())

    with torch.no_grad():
        latents, rounded = plain.latents(bands), codec.latents(bands)
        assert torch.equal(latents[0], rounded[0]), "s, of ll2 alone, stays float"
        assert max(error(rounded[i], latents[i]) for i in (1, 2)) < 1e-2
        prompt, s_hat = plain.decoded(plain.entropy.code(*latents, q), q)
        expected, found = (
            one.one_step(prompt, s_hat, torch.zeros(2), noise, q) for one in (plain, codec)
        )
        assert error(found, expected) < 5e-3


def uneven_codec() -> Codec:
    """A small codec whose channels differ in size, as trained ones do; FiLM and t have a say."""
    torch.manual_seed(5)
    codec = small_codec()
    with torch.no_grad():
        for stream in streams(codec):
            for film in (*stream.films, *(b.film for b in stream.blocks if b.film is not None)):
                film.weight.normal_(std=0.1)
                film.bias.normal_(std=0.3)
            for block in stream.blocks:  # the sizes cancel out: only the channels between differ
                sizes = torch.exp2(torch.randn(block.conv1.out_channels) * 2)
                block.conv1.weight.mul_(sizes[:, None, None, None])
                block.conv1.bias.mul_(sizes)
                if block.film is not None:
                    block.film.weight[len(sizes) :].mul_(sizes[:, None])
                    block.film.bias[len(sizes) :].mul_(sizes)
                block.conv2.weight.div_(sizes[None, :, None, None])
    return codec


def ranges_of(codec: Codec, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Largest magnitude of each channel at the inputs of the blocks' convolutions."""
    found: dict[str, torch.Tensor] = {}

    def see(name: str, x: torch.Tensor) -> None:
        high = x.abs().amax((0, 2, 3))
        found[name] = torch.maximum(found.get(name, high), high)

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, layer in codec.named_modules()
        if name.endswith(("conv1", "conv2"))
    ]
    look_at(codec, batches)
    for hook in hooks:
        hook.remove()
    return found


def test_equalised_channels_have_equal_ranges_and_the_codec_is_the_same() -> None:
    codec, batches = uneven_codec(), [images(4)]
    bands = split_bands(images(2))
    arguments = (torch.tensor([60, 90]), torch.tensor([0.0, 1.0]), torch.randn_like(bands))
    with torch.no_grad():
        expected, bits = codec(bands, *arguments, bf16=False)
        refined, _ = codec.refine(codec.base(bands, bf16=False), torch.tensor([140, 250]))
    torch.manual_seed(4)
    before = ranges_of(codec, batches)

    def run(codec: Codec) -> None:
        torch.manual_seed(4)
        look_at(codec, batches)

    equalise(codec, run)
    with torch.no_grad():
        found, found_bits = codec(bands, *arguments, bf16=False)
        again, _ = codec.refine(codec.base(bands, bf16=False), torch.tensor([140, 250]))
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (again - refined).abs().max() < 1e-2 * refined.abs().max()
    for part, value in bits.items():
        assert found_bits[part].tolist() == pytest.approx(value.tolist(), rel=0.02), part
    torch.manual_seed(4)
    after = ranges_of(codec, batches)

    def unevenness(ranges: dict[str, torch.Tensor]) -> float:
        return float(np.mean([float(r.clamp_min(1e-6).log2().std()) for r in ranges.values()]))

    assert unevenness(before) > 1.0
    assert unevenness(after) < 0.6 * unevenness(before)


def test_equalised_channels_lose_less_to_eight_bits() -> None:
    bands = split_bands(images(2))
    arguments = (torch.tensor([60, 90]), torch.zeros(2), torch.zeros_like(bands))
    errors = []
    for equal in (False, True):
        codec = uneven_codec()
        with torch.no_grad():
            expected, _ = codec(bands, *arguments, bf16=False)
        if equal:
            equalise(codec, lambda codec: look_at(codec, [images(8)]))
        quantised = quantised_copy(codec)
        calibrate(quantised, [images(8)])
        with torch.no_grad():
            found, _ = quantised(bands, *arguments, bf16=False)
        errors.append(float((found - expected).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_split_convolution_is_the_plain_one_but_for_rounding() -> None:
    torch.manual_seed(2)
    plain = torch.nn.Conv2d(7, 5, 3, padding=1)
    split = SplitConv2d(plain, 2)
    sizes = torch.tensor([3.0, 900.0, 0.02, 1.0, 40.0, 0.3, 7.0])[None, :, None, None]
    x = torch.randn(2, 7, 9, 8) * sizes
    split.highest = torch.zeros_like(split.factors)
    split.rounded.input.seen = []  # as `calibrate` asks of all ranges
    split(x)
    split.rounded.input.settle()
    split.settle()
    assert split.factors.flatten().tolist() == pytest.approx(
        (1 / x[:, 2:].abs().amax((0, 2, 3))).tolist()
    )
    with torch.no_grad():
        few = x.clone()
        few[:, 2:] = 0
        torch.testing.assert_close(split(few), plain(few), rtol=1e-5, atol=1e-3)  # in float
        few = x.clone()
        few[:, :2] = 0
        error = (split(few) - plain(few)).square().mean() / plain(few).square().mean()
        assert 1e-7 < error < 1e-3, "every channel has a step of its own size"
        again = SplitConv2d(torch.nn.Conv2d(7, 5, 3, padding=1), 2)
        again.load_state_dict(split.state_dict())
        assert torch.equal(again(x), split(x))
        again.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(again(x), split(x))


def test_a_split_convolution_that_saw_nothing_is_an_error() -> None:
    split = SplitConv2d(torch.nn.Conv2d(3, 4, 1), 1)
    with pytest.raises(ValueError, match="nothing was seen"):
        split.settle()
    split.highest = torch.zeros_like(split.factors)
    with pytest.raises(ValueError, match="nothing was seen"):
        split.settle()


def test_a_channel_without_weights_keeps_its_bias(tmp_path: Path) -> None:
    """Its step would be so small that the bias, in steps, is beyond 32 bits."""
    plain = small_codec()
    with torch.no_grad():
        plain.g_s.noise16.weight.zero_()
        plain.g_s.noise16.bias.fill_(3.0)
    codec = quantised_copy(plain)
    calibrate(codec, [images(8)])
    for p in codec.residual.parameters():
        p.data = p.data.half().float()  # as a file holds them
    export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
    for name, worst in differences(codec, tmp_path, 80, 48).items():
        assert worst <= 2 * tolerance(codec, name), name


def test_every_range_and_weight_gets_a_gradient() -> None:
    _, codec = calibrated()
    codec.train()
    out, _ = codec(
        split_bands(images(2)),
        torch.tensor([60, 90]),
        torch.ones(2),
        torch.randn(2, 48, 16, 16),
        bf16=False,
    )
    out.square().mean().backward()
    layers = {n: m for n, m in codec.named_modules() if isinstance(m, QuantisedConv2d)}
    assert {n.split(".")[0] for n in layers} == {"g_a", "g_s"}
    given = {"g_s.amounts", "g_s.noise", "g_s.pick", "g_s.grain"}
    assert given < set(layers)
    for name, layer in layers.items():
        for parameter in layer.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert layer.input.log2_step.grad is not None, name
        if name in given:
            assert not layer.weight.requires_grad
        else:
            assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0, name


def test_the_graphs_compute_in_integers(tmp_path: Path) -> None:
    """QDQ around every chosen convolution, bytes for weights, and equal in all engines."""
    _, codec = calibrated()
    for p in codec.residual.parameters():
        p.data = p.data.half().float()  # as a file holds them
    export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
    assert codec.config.quantised, "the export works on a copy"
    for name in ("analysis", "synthesis"):
        graph = onnx.load(str(tmp_path / f"{name}.onnx")).graph
        made_by = {out: node for node in graph.node for out in node.output}
        kinds = {i.name: i.data_type for i in graph.initializer}
        values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        convolutions = [n for n in graph.node if n.op_type == "Conv"]
        quantised = [
            n
            for n in convolutions
            if all(i in made_by and made_by[i].op_type == "DequantizeLinear" for i in n.input)
        ]
        layers = [
            m
            for n, m in codec.named_modules()
            if isinstance(m, QuantisedConv2d)
            and n.startswith("g_a" if name == "analysis" else "g_s")
        ]
        assert len(quantised) == len(layers) and len(convolutions) > len(layers)
        # weights that are given have no bias
        assert sum(len(n.input) == 3 for n in quantised) == sum(m.bias is not None for m in layers)
        for node in quantised:
            assert kinds[made_by[node.input[1]].input[0]] == onnx.TensorProto.INT8
            for bias in node.input[2:]:
                assert kinds[made_by[bias].input[0]] == onnx.TensorProto.INT32
            # TensorRT takes symmetric steps alone
            zero = made_by[node.input[0]].input[2]
            assert not values[zero].any() and values[zero].dtype == np.int8
    # untrained weights magnify a value that fell to the other level: 1.2 times the tolerance of a
    # trained model on one CPU, half of it on another
    for name, worst in differences(codec, tmp_path, 80, 48).items():
        assert worst <= 2 * tolerance(codec, name), name


def test_equal_biases_are_stored_once(tmp_path: Path) -> None:
    """Those of new layers, which are all zero."""
    plain = small_codec()
    with torch.no_grad():
        for block in plain.g_s.b8:
            block.conv1.bias.zero_()
            block.conv2.bias.zero_()
    codec = quantised_copy(plain)
    calibrate(codec, [images(8)])
    export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
    graph = onnx.load(str(tmp_path / "synthesis.onnx")).graph
    inputs = {name for node in graph.node for name in node.input}
    for layer in ("conv1", "conv2"):
        assert f"codec.g_s.b8.0.{layer}.bias_int32" in inputs


def test_a_layer_that_is_not_in_the_graph_is_an_error(tmp_path: Path) -> None:
    _, codec = calibrated()
    export_model(small_codec(), tmp_path, {}, name="small", min_quality=0.0)
    graph = onnx.load(str(tmp_path / "analysis.onnx"))
    layer = next(m for m in codec.modules() if isinstance(m, QuantisedConv2d))
    with pytest.raises(ValueError, match="the graph has no nowhere"):
        to_qdq(graph, {"nowhere": layer})


def test_a_model_is_read_back_and_exported_as_it_was(tmp_path: Path) -> None:
    plain, codec = calibrated()
    with torch.no_grad():  # what starts at zero is not to look alike
        for p in codec.parameters():
            p.add_(0.02 * torch.randn_like(p)) if not p.any() else None
    record = {"settings": {}, "step": 3, "images": 5, "elapsed": 7.0}
    weights = {"model": codec.state_dict(), "ema": codec.state_dict()}
    torch.save({**record, "config": codec.config_dict(), **weights}, tmp_path / "a.pt")
    # the float checkpoint beside it knows what graphs do not say
    for part in ("entropy", "residual"):
        getattr(plain, part).load_state_dict(getattr(codec, part).state_dict())
    for name in ("a", "b"):
        if name == "b":
            state = {**record, "config": plain.config_dict(), "ema": plain.state_dict()}
            torch.save(restored(state, tmp_path / "a"), tmp_path / "b.pt")
        read, told = load_codec(tmp_path / f"{name}.pt")
        export_model(read, tmp_path / name, told, name="small", min_quality=0.0)
    for name in (*GRAPHS, "entropy_model.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_graphs_that_are_not_int8_are_not_read_back(tmp_path: Path) -> None:
    plain, _ = calibrated()
    export_model(plain, tmp_path, {}, name="small", min_quality=0.0)
    state = {"config": plain.config_dict(), "ema": plain.state_dict()}
    with pytest.raises(ValueError, match="is not rounded in the graph"):
        restored(state, tmp_path)


def test_a_packed_checkpoint_keeps_the_ranges() -> None:
    _, codec = calibrated()
    weights = codec.state_dict()
    state = {"ema": weights, "config": codec.config_dict(), "settings": {}, "elapsed": 0.0}
    packed = pack({**state, "step": 0, "images": 0})
    ranges = [n for n in weights if n.endswith("log2_step")]
    assert ranges
    for name in ranges:
        assert torch.equal(packed["ema"][name], weights[name])


def test_training_follows_a_float_codec(
    face_folder: Path, tmp_path: Path, steady_clock: None
) -> None:
    settings = Settings(
        perceptual_from=2.0, large_share=(0.0, 0.0), batch_128=4, decay_from=1.0, adam_lr=2e-2
    )
    plain = small_codec()
    weights = {"model": plain.state_dict(), "ema": plain.state_dict(), "settings": asdict(settings)}
    counts = {"elapsed": 60.0, "step": 5, "images": 9}
    state = {"config": plain.config_dict(), **weights, **counts}
    torch.save(state, tmp_path / "float.pt")
    torch.save(quantised_state(state, read_index(face_folder, "train")), tmp_path / "int8.pt")
    args = argparse.Namespace(
        data=str(face_folder), weights="", out=str(tmp_path / "run"), minutes=1.05,
        init=str(tmp_path / "int8.pt"), teacher=str(tmp_path / "float.pt"), override={},
        validate_every=60.0, validate_count=1, workers=0,
    )  # fmt: skip
    trainer = Trainer(args, settings)
    assert trainer.step == 5 and trainer.model.config.quantised
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.run()
    assert trainer.step > 5
    steps = [n for n in before if n.endswith("log2_step")]
    parameters = dict(trainer.model.named_parameters())
    assert steps and not any(torch.equal(before[n], parameters[n]) for n in steps)
    codec, _ = load_codec(tmp_path / "run" / "checkpoint.pt")
    assert codec.config.quantised


def test_an_int8_student_learns_to_give_what_the_float_one_gives(
    face_folder: Path, tmp_path: Path, steady_clock: None
) -> None:
    plain = small_codec()
    weights = {"model": plain.state_dict(), "ema": plain.state_dict(), "settings": {}}
    counts = {"elapsed": 0.0, "step": 0, "images": 0}
    state = {"config": plain.config_dict(), **weights, **counts}
    torch.save(state, tmp_path / "float.pt")
    faces = read_index(face_folder, "train")
    torch.save(quantised_state(state, faces), tmp_path / "int8.pt")
    settings = RoundingSettings(batch_128=4, large_share=0.0, ema=0.9)
    args = argparse.Namespace(
        data=str(face_folder), out=str(tmp_path / "run"), minutes=0.1,
        init=str(tmp_path / "int8.pt"), codec=str(tmp_path / "float.pt"), override={},
        validate_every=60.0, validate_count=1, workers=0,
    )  # fmt: skip
    trainer = RoundingTrainer(args, settings)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.validate()
    trainer.run()
    after = dict(trainer.model.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    steps = {n for n in before if n.startswith("g_s.b") and n.endswith("log2_step")}
    assert steps and steps <= moved
    assert all(n.startswith("g_s.") for n in moved)
    first, last = np.loadtxt(tmp_path / "run" / "curve.tsv")[:, 3:]
    assert np.log(last).mean() < np.log(first).mean()
