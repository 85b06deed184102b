"""Encoder and Decoder: the wiring, in the order the data flows. No maths."""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, bitstream, imaging
from .bitstream import Header
from .engines import Graph, Shapes, check_ports, load_graph
from .entropy_model import CodedBase, EntropyModel, Levels, Rates, prices_at
from .errors import BitstreamError, BudgetError, ModelError, OptionError
from .frequency import FINE_BANDS, NUM_BANDS, merge_bands, split_bands, split_gradient
from .models import (
    ANALYSIS,
    GRADIENT,
    REFERENCE_SIDE,
    RESIDUAL,
    SYNTHESIS,
    Model,
    installed,
    load_model,
)
from .rate import Search, estimate_bytes, find_quality, least_bytes
from .recognition import Likeness
from .refinement import LIKENESS, refine
from .sampler import Prompt, Schedule, sample
from .stages import stage

Array = NDArray[np.float32]

DEFAULT_QUALITY = 32.0
MAX_EFFORT = 64  # passes
_SLACK = 6.0  # bits of a budget that are left to the range coder's ending
_NEAR_SMALLEST = 16  # bytes over the smallest file, within which other scales are looked at
_LOW_QUALITIES = 24  # quarter steps among which the smallest file is looked for
_PLAIN = 1.4  # times the estimated bytes of the whole base: a budget for a residual as well
# At a quality a picture takes 2.3 to 4 times what is expected of its half, by the latents of that.
_LARGER = 2.3
_ESTIMATE_EVERY = 21  # quarter steps between the qualities at which bytes are estimated


class Encoder:
    """Encodes images. Reusable; may be shared between threads."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "edge",
        engine: str = "auto",
        threads: int | None = None,
        effort: int = 0,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Load the analysis graph. The others follow with the first file that needs them.

        Args:
          model: the name of a shipped model, or the path of a model directory.
          engine: "openvino", "onnxruntime", or "auto": FASDIFF_ENGINE if set, else what
            `fasdiff bench --write-profile` found best on this machine, else OpenVINO on x86-64
            where installed, else ONNX Runtime.
          threads: of the inference engine, at least 1; None follows that profile, or else leaves
            it to the engine.
          effort: 0..64, passes that refine each image (`refinement`): the same bytes say more.
            Each takes some five times as long as decoding; 8 bring most of it. Decoders do not
            notice.
          size: (height, width) of most images, as a camera's all have: OpenVINO compiles its
            graphs for it and its scales, and coding takes some 5 % less. Others are coded as
            well. The first at each scale, and the first of another size, waits half a second. A
            file may differ from one that is encoded without, by what those of two engines do.
        Raises:
          OptionError, ModelError, EngineError.
        """
        threads = _check_threads(threads)
        self._effort = _check_count("effort", effort, 0, MAX_EFFORT)
        self._model = load_model(model)
        if self._effort and not self._model.has(GRADIENT):
            raise OptionError(
                f"effort is {effort}, but the model {self._model.name} has no {GRADIENT}; use 0"
            )
        self._shapes = graph_shapes(self._model.entropy, size)
        self._graph = load_graph(self._model.read(ANALYSIS), engine, threads, None, self._shapes)
        check_ports(self._graph, ["bands"], ["y", "z", "s", "price"])
        self._engine, self._threads = engine, threads
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(1, "fasdiff-encoder")
        self._closed_loop: tuple[_Student, Graph] | None = None
        self._gradient: Graph | None = None

    def encode(
        self,
        image: NDArray[np.uint8],
        *,
        quality: float | None = None,
        max_bytes: int | None = None,
        likeness: Likeness | None = None,
    ) -> bytes:
        """Encode an image.

        Args:
          image: uint8 RGB [H, W, 3]; H and W 32..4096.
          quality: 0..63 in quarter steps; 32 where neither is given.
          max_bytes: size that the file, header included, must not exceed. The largest quality
            that fits is used, at a smaller scale where that serves the image better. With
            `quality` as well, both bind.
          likeness: what the passes of `effort` follow besides the squared error, of
            `Recogniser.likeness` or your own: a function of the decoded picture, uint8 RGB
            [h, w, 3] at the size that is coded, that gives a distance over 0 and its gradient,
            float32 [h, w, 3]. It is asked once a pass, which then takes two evaluations.
        Returns:
          The file.
        Raises:
          ImageError: not such an image.
          OptionError: quality or max_bytes out of range; a likeness without effort, or that does
            not give what it should.
          BudgetError: max_bytes cannot be met; `.smallest` can.
          EngineError: the inference engine failed.
        """
        image = imaging.check_image(image)
        if likeness is not None and not self._effort:
            raise OptionError("likeness guides the passes of effort, which is 0: Encoder(effort=8)")
        if quality is None:
            quality = DEFAULT_QUALITY if max_bytes is None else bitstream.MAX_QUALITY / 4
        highest = _check_quality(quality)
        first = _largest_scale(*image.shape[:2])
        if max_bytes is None:
            latents = self._refined(self._analyse(image, first, likeness), highest)
            payload = self._code(latents, highest)
            return self._pack(image, first, highest, payload)
        budget = _check_count("max_bytes", max_bytes)
        return self._encode_within(image, budget, highest, first, likeness)

    def _encode_within(
        self,
        image: NDArray[np.uint8],
        max_bytes: int,
        highest: int,
        first: int,
        likeness: Likeness | None,
    ) -> bytes:
        """Take the first scale, from `first` down, that fits at an acceptable quality."""
        *larger, last = range(first, bitstream.MAX_SCALE + 1)
        height, width = image.shape[:2]
        limit = bitstream.payload_limit(height, width, max_bytes)
        floors = {
            scale: min(
                self._model.min_quality(*bitstream.coded_size(height, width, scale)), highest
            )
            for scale in larger
        }
        scales = _Scales(image, lambda bands, size: self._latents(bands, size, likeness))
        start = self._first_to_try(scales, limit, floors)
        plan = [(scale, floors[scale], highest) for scale in larger if scale >= start]
        plan.append((last, 0, highest))
        # Reached only where the smallest scale does not fit, as it may on tiny images.
        tops = {scale: floors[scale] - 1 if scale >= start else highest for scale in larger}
        plan += [(scale, 0, tops[scale]) for scale in reversed(larger) if tops[scale] >= 0]
        lowest: dict[int, int] = {}
        for scale, low, high in plan:
            latents = scales.latents(scale)
            found = self._search(latents, limit, low, high)
            if found.quality is not None and self._effort:
                found = self._refine_within(latents, limit, low, high, found)
            if found.quality is not None:
                return self._pack(image, scale, found.quality, found.payload)
            if low == 0:
                lowest[scale] = found.sizes[0]
        scale, quality, payload = self._smallest(lowest, scales, highest)
        data = self._pack(image, scale, quality, payload)
        if len(data) > max_bytes:
            raise BudgetError(max_bytes, len(data))
        return data

    def _first_to_try(self, scales: _Scales, limit: int, floors: dict[int, int]) -> int:
        """The largest scale at which the picture may fit, from what it is at the next smaller one.

        Four times the pixels take four times as long to analyse, only to see that they do not fit.
        Up to the size that the model's qualities refer to nearly all do.

        Args:
          floors: the least quality of each scale, in quarter steps; of all but the last.
        """
        base = slice(0, self._model.entropy.num_base)
        for scale in sorted(floors, reverse=True):
            if math.prod(scales.size(scale)) <= REFERENCE_SIDE**2:
                continue
            step = float(self._model.entropy.steps(floors[scale])[base].mean())
            if limit >= least_bytes(scales.bands(scale + 1)[FINE_BANDS], step):
                continue
            ((_, log_bytes),) = self._estimate(scales.latents(scale + 1), [floors[scale]])
            if _LARGER * math.exp(log_bytes) > limit:
                return scale + 1
        return min(floors, default=bitstream.MAX_SCALE)

    def _estimate(self, latents: _Latents, qualities: Sequence[int]) -> list[tuple[int, float]]:
        """Logs of the bytes that the base is expected to take at qualities."""
        entropy = self._model.entropy
        base = slice(0, entropy.num_base)
        with stage("entropy encode"):
            return estimate_bytes(
                latents.y, lambda q: entropy.steps(q)[base], qualities, self._model.base_rate
            )

    def _smallest(
        self, lowest: dict[int, int], scales: _Scales, highest: int
    ) -> tuple[int, int, bytes]:
        """Scale, quality and payload of the smallest file.

        Bytes are not quite monotone in quality: the lowest qualities of the smallest scales are
        tried, so that the size that `BudgetError` names can be had, and no smaller one can.

        Args:
          lowest: payload bytes at quality 0, by scale; at least one.
        """
        near = min(lowest.values()) + _NEAR_SMALLEST
        files = (
            (scale, quality, self._code(scales.latents(scale), quality))
            for scale, size in lowest.items()
            if size <= near
            for quality in range(min(_LOW_QUALITIES, highest) + 1)
        )
        return min(files, key=lambda file: len(file[2]))

    def _analyse(
        self, image: NDArray[np.uint8], scale: int, likeness: Likeness | None = None
    ) -> _Latents:
        return self._latents(*_split(image, scale), likeness)

    def _latents(
        self, bands: Array, size: tuple[int, int], likeness: Likeness | None = None
    ) -> _Latents:
        with stage("analysis"):
            outputs = self._graph.run({"bands": bands[None]})
        entropy = self._model.entropy
        hy, wy = bands.shape[1] // 4, bands.shape[2] // 4
        _check_shape("s", outputs["s"], (1, entropy.num_s))
        _check_shape("z", outputs["z"], (1, entropy.num_z, -(-hy // 4), -(-wy // 4)))
        _check_shape("y", outputs["y"], (1, entropy.num_base, hy, wy))
        _check_shape("price", outputs["price"], (1, 1, hy, wy))
        return _Latents(
            bands=bands,
            s=outputs["s"][0],
            z=outputs["z"][0],
            y=outputs["y"][0],
            price=outputs["price"][0, 0],
            size=size,
            likeness=likeness,
        )

    def _refined(
        self, latents: _Latents, quality: int, limit: int | None = None, size: int = 0
    ) -> _Latents:
        """Latents that serve the image better at this quality, by as many passes as asked for.

        Args:
          limit: bytes that the payload should come to, where it has `size` as the latents are;
            None: about what it has.
        """
        if not self._effort:
            return latents
        with stage("refinement"):
            image = _Refinement(self._model.entropy, self._gradient_graph(), latents, quality)
            room = None if limit is None else 8 * (limit - size) - _SLACK
            y = refine(latents.y / image.step, image.rates, image.error, self._effort, room)
            return replace(latents, y=y * image.step, left=None)

    def _refine_within(
        self, latents: _Latents, limit: int, low: int, high: int, found: Search
    ) -> Search:
        """What fits when the latents are refined, where as they are they gave `found`.

        Rounded at another quality, refined latents lose a third of their gain: without a residual,
        the quality is chosen first, a little over what fits now, and the bytes are brought down to
        the limit.
        """
        assert found.quality is not None
        chosen, size = found.quality, len(found.payload)
        if chosen < self._model.entropy.residual_from:
            if chosen + 1 in found.sizes:
                chosen, size = chosen + 1, found.sizes[chosen + 1]
            aim = limit if chosen < high else min(limit, size)  # no more than a quality asks for
            latents = self._refined(latents, chosen, aim, size)
            payload = self._code(latents, chosen)
            if len(payload) <= limit:
                return Search(chosen, payload)
        else:
            latents = self._refined(latents, chosen)
        better = self._search(latents, limit, low, high)
        return found if better.quality is None else better

    def _gradient_graph(self) -> Graph:
        with self._lock:
            if self._gradient is None:
                # Two parts of one graph, see `export/gradient.py`.
                graph = self._model.read(SYNTHESIS) + self._model.read(GRADIENT)
                self._gradient = _load_student(
                    self._model.entropy,
                    graph,
                    self._engine,
                    self._threads,
                    ["target", "weight"],
                    ["error", "prompt_gradient"],
                )
            return self._gradient

    def _search(self, latents: _Latents, limit: int, low: int, high: int) -> Search:
        """The largest quality in low .. high that fits, where low is below the residual's.

        The residual is looked at only where the base does not fill the budget: it takes a student.
        Where that is plain to see, the base is not searched first.
        """
        entropy = self._model.entropy
        top = min(high, entropy.residual_from - 1)
        last = min(entropy.residual_from, bitstream.MAX_QUALITY)
        estimate = self._estimate(latents, _estimated(0, last))
        qualities, logs = np.array(estimate).T
        base_bytes = math.exp(float(np.interp(top, qualities, logs)))
        more = Search()
        if top < high and limit > _PLAIN * base_bytes:
            more = self._search_residual(latents, limit, top + 1, high, base_bytes)
            if more.quality is not None:
                return more
        found = find_quality(lambda q: self._code_each(latents, q), limit, low, top, estimate)
        if found.quality != top or top == high or more.sizes:
            return found
        more = self._search_residual(latents, limit, top + 1, high, len(found.payload))
        return more if more.quality is not None else found

    def _search_residual(
        self, latents: _Latents, limit: int, low: int, high: int, base_bytes: float
    ) -> Search:
        """The largest quality in low .. high that fits, all with a residual, if any does."""
        entropy = self._model.entropy
        residual = self._left(latents).residual
        rest = slice(entropy.num_base, None)
        with stage("entropy encode"):
            added = estimate_bytes(
                residual,
                lambda q: entropy.steps(q)[rest],
                _estimated(entropy.residual_from, bitstream.MAX_QUALITY),
                self._model.residual_rate,
            )
            estimate = [(q, math.log(base_bytes + math.exp(v))) for q, v in added]
        return find_quality(lambda q: self._code_each(latents, q), limit, low, high, estimate)

    def _code(self, latents: _Latents, quality: int) -> bytes:
        (payload,) = self._code_each(latents, [quality])
        return payload

    def _code_each(self, latents: _Latents, qualities: Sequence[int]) -> list[bytes]:
        """Payloads at some qualities, side by side on as many threads as the engine has, or two."""
        entropy = self._model.entropy

        def code(quality: int) -> bytes:
            if quality >= entropy.residual_from:
                left = self._left(latents)
                residual = entropy.round_residual(left.residual, quality)
                prices = prices_at(latents.price, quality, entropy.residual_from)
                return left.base.encode(residual, quality, prices)
            levels = entropy.round_latents(latents.s, latents.z, latents.y, quality)
            return entropy.encode(levels, quality)

        if max(qualities) >= entropy.residual_from:
            self._left(latents)  # once, before threads ask for it
        with stage("entropy encode"):
            if len(qualities) == 1 or self._threads == 1:
                return [code(quality) for quality in qualities]
            others = [self._workers.submit(code, quality) for quality in qualities[1:]]
            return [code(qualities[0]), *(other.result() for other in others)]

    def _residual_graphs(self) -> tuple[_Student, Graph]:
        with self._lock:
            if self._closed_loop is None:
                student = _Student(self._model, self._engine, 1, self._threads, self._shapes)
                transform = load_graph(self._model.read(RESIDUAL), self._engine, self._threads)
                check_ports(transform, ["bands"], ["residual"])
                self._closed_loop = student, transform
            return self._closed_loop

    def _left(self, latents: _Latents) -> _Left:
        """The coded base and what the student leaves of the image; found once."""
        if latents.left is not None:
            return latents.left
        entropy = self._model.entropy
        quality = entropy.residual_from
        student, transform = self._residual_graphs()
        with stage("residual"):
            base = entropy.code_base(
                entropy.round_latents(latents.s, latents.z, latents.y, quality)
            )
            prompt = _prompt(entropy, base.levels, quality)
            decoded = student.bands(prompt, np.zeros_like(latents.bands), realism=0.0)
            left = latents.bands - decoded
            residual = transform.run({"bands": left[None]})["residual"]
        _check_shape("residual", residual, (1, entropy.num_residual, *latents.y.shape[1:]))
        latents.left = _Left(base, residual[0])
        return latents.left

    def _pack(self, image: NDArray[np.uint8], scale: int, quality: int, payload: bytes) -> bytes:
        height, width = image.shape[:2]
        header = Header(self._model.entropy.model_id, height, width, scale, quality)
        return bitstream.pack(header, payload)


class Decoder:
    """Decodes files. Reusable; may be shared between threads.

    With OpenVINO the first file with a residual (quality 28 and more) takes some 0.2 s longer: its
    student is loaded then, since one that has no residual to look at is faster.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "edge",
        engine: str = "auto",
        num_steps: int = 1,
        realism: float = 1.0,
        threads: int | None = None,
        max_pixels: int = 2**24,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Load the synthesis graph.

        Args:
          model, engine, threads, size: as in `Encoder`.
          num_steps: network evaluations per image; one that the model supports.
          realism: 0 (the mean of what the bytes allow: faithful, soft) to 1 (a sharp sample).
          max_pixels: images with more are refused before anything is allocated.
        Raises:
          OptionError, ModelError, EngineError.
        """
        threads = _check_threads(threads)
        self._realism = _check_realism(realism)
        self._max_pixels = _check_count("max_pixels", max_pixels)
        self._model = load_model(model)
        if num_steps not in self._model.num_steps:
            raise OptionError(
                f"num_steps is {num_steps!r}; the model {self._model.name} supports "
                f"{', '.join(map(str, self._model.num_steps))}"
            )
        shapes = graph_shapes(self._model.entropy, size)
        self._student = _Student(self._model, engine, num_steps, threads, shapes)

    def decode(self, data: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
        """Decode a file. The same file, model, engine and `size` always give the same image.

        Args:
          data: the whole file.
        Returns:
          uint8 RGB [H, W, 3], the size that was encoded.
        Raises:
          BitstreamError: foreign, future, truncated, damaged, or over max_pixels.
          ModelError: made with another model.
          EngineError: the inference engine failed.
        """
        with stage("entropy decode"):
            header, seed, levels = read_levels(data, self._model, self._max_pixels)
            entropy, quality = self._model.entropy, header.quality
            residual = quality >= entropy.residual_from
            prompt = _prompt(entropy, levels, quality, residual=residual)
        realism = self._realism * self._unknown(header.quality)
        with stage("noise"):
            hy, wy = header.latent_size
            shape = (NUM_BANDS, 4 * hy, 4 * wy)
            if realism > 0:
                noise = _core.noise(seed, math.prod(shape)).reshape(shape)
            else:
                noise = np.zeros(shape, np.float32)  # none is heard
        with stage("student"):
            bands = self._student.bands(prompt, noise, realism)
        with stage("merge"):
            coded = merge_bands(bands, *header.coded_size)
            return imaging.upscale(coded, header.scale, header.height, header.width)

    def _unknown(self, quality: int) -> float:
        """How much of the detail is left to the sampler: the residual tells the rest."""
        first, last = self._model.entropy.residual_from, bitstream.MAX_QUALITY
        return 1.0 if quality < first else (last - quality) / (last - first + 1)


class _Student:
    """The synthesis graph of a model: without a residual, and with one once that is asked for."""

    def __init__(
        self,
        model: Model,
        engine: str,
        num_steps: int,
        threads: int | None,
        shapes: Sequence[Shapes],
    ) -> None:
        self._model, self._engine, self._threads = model, engine, threads
        self._shapes = shapes
        self._schedule = Schedule(num_steps, model.time_shift, model.deviations)
        self._entropy = model.entropy
        self._lock = threading.Lock()
        graph = model.read(SYNTHESIS)
        self._base = _load_student(model.entropy, graph, engine, threads, shapes=shapes)
        self._whole: Graph | None = self._base if "residual" in self._base.inputs else None

    def bands(self, prompt: Prompt, noise: Array, realism: float) -> Array:
        """float32 [48, 4 hy, 4 wy], of noise of that shape."""
        return sample(self._denoise, prompt, noise, realism, self._schedule)

    def _denoise(self, prompt: Prompt, x_t: Array, t: Array, realism: Array) -> Array:
        graph = self._base if prompt.residual is None else self._with_residual()
        bands = graph.run(_student_arrays(graph, self._entropy, prompt, x_t, t, realism))["bands"]
        _check_shape("bands", bands, x_t.shape)
        return bands

    def _with_residual(self) -> Graph:
        with self._lock:
            if self._whole is None:
                graph = self._model.read(SYNTHESIS)
                self._whole = load_graph(graph, self._engine, self._threads, None, self._shapes)
            return self._whole


def graph_shapes(entropy: EntropyModel, size: tuple[int, int] | None) -> list[Shapes]:
    """Shapes of the graphs' inputs for images of this (height, width), one for each scale."""
    if size is None:
        return []
    height, width = _check_size(size)
    found: list[Shapes] = []
    for scale in range(_largest_scale(height, width), bitstream.MAX_SCALE + 1):
        hy, wy = (-(-side // 16) for side in bitstream.coded_size(height, width, scale))
        bands = (1, NUM_BANDS, 4 * hy, 4 * wy)
        found.append(
            {
                "bands": bands,
                "x_t": bands,
                "prompt": (1, entropy.num_base + entropy.num_z, hy, wy),
                "residual": (1, entropy.num_residual, hy, wy),
            }
        )
    return found


def _load_student(
    entropy: EntropyModel,
    graph: bytes,
    engine: str,
    threads: int | None,
    more_inputs: Sequence[str] = (),
    more_outputs: Sequence[str] = (),
    shapes: Sequence[Shapes] = (),
) -> Graph:
    """A synthesis graph, or one that goes on from it, for files without a residual."""
    names = ["prompt", "s_hat", "x_t", "t", "realism", "quality", *more_inputs]
    without = "residual" if entropy.num_residual else None
    found = load_graph(graph, engine, threads, without, shapes)
    if without is not None and found.left_out is None:
        names.append(without)
    check_ports(found, names, ["bands", *more_outputs])
    return found


def _student_arrays(
    graph: Graph, entropy: EntropyModel, prompt: Prompt, x_t: Array, t: Array, realism: Array
) -> dict[str, Array]:
    """What a synthesis graph takes."""
    arrays = {
        "prompt": prompt.visual,
        "s_hat": prompt.s_hat,
        "quality": prompt.quality,
        "x_t": x_t,
        "t": t,
        "realism": realism,
    }
    if "residual" in graph.inputs:
        residual = prompt.residual
        if residual is None:
            shape = (1, entropy.num_residual, *prompt.visual.shape[2:])
            residual = np.zeros(shape, np.float32)
        arrays["residual"] = residual
    return arrays


class _Refinement:
    """What `refine` asks about one image, at one quality of its base.

    Attributes:
      step: float32 [num_base, 1, 1], latent units per symbol.
    """

    def __init__(
        self, entropy: EntropyModel, graph: Graph, latents: _Latents, quality: int
    ) -> None:
        self._entropy, self._graph, self._bands = entropy, graph, latents.bands
        self._size, self._likeness = latents.size, latents.likeness
        first = entropy.residual_from
        self._quality = min(quality, first)
        self.step = entropy.steps(self._quality)[: entropy.num_base]
        levels = entropy.round_latents(latents.s, latents.z, latents.y, self._quality)
        payload = entropy.encode(levels, self._quality)
        self._levels = entropy.decode(payload, self._quality, latents.y.shape[1:])
        # An error counts as much as it may cost to mend.
        price = prices_at(latents.price, max(quality, first), first).astype(np.float32)
        weight = price.mean() / np.maximum(price, 1)
        self._weight = weight.repeat(4, 0).repeat(4, 1)

    def rates(self, y: Array) -> Rates:
        return self._entropy.rates(self._levels, y, self._quality)

    def error(self, decoded: Levels) -> tuple[float, Array]:
        prompt = _prompt(self._entropy, decoded, self._quality)
        x_t, t = np.zeros_like(self._bands)[None], np.ones(1, np.float32)
        realism = np.zeros(1, np.float32)
        inputs = _student_arrays(self._graph, self._entropy, prompt, x_t, t, realism)
        target = {"target": self._bands[None], "weight": self._weight[None, None]}
        found = self._graph.run({**inputs, **target})
        error = float(found["error"])
        if self._likeness is not None:
            bands = found["bands"][0]
            away = self._weight * (bands - self._bands) + error * self._unlike(
                self._likeness, bands
            )
            # the same graph gives any gradient back: half of it is what squares of weight 1 have
            target = {"target": (bands - away)[None], "weight": np.ones_like(target["weight"])}
            found = self._graph.run({**inputs, **target})
        gradient = found["prompt_gradient"]
        _check_shape("prompt_gradient", gradient, prompt.visual.shape)
        return error, gradient[0, : self._entropy.num_base] * self.step

    def _unlike(self, likeness: Likeness, bands: Array) -> Array:
        """Half the gradient of LIKENESS log(distance), [48, h, w]."""
        picture = merge_bands(bands, *self._size)
        distance, gradient = _check_likeness(likeness(picture), picture.shape)
        if distance <= 0:
            return np.zeros_like(bands)  # nothing to gain
        return split_gradient(gradient * np.float32(0.5 * LIKENESS / distance))


@dataclass
class _Latents:
    """An image's bands [48, h, w] and the analysis graph's outputs, float32.

    s [S], z [Cz, hz, wz], y [num_base, hy, wy], price [hy, wy]; `size`, height and width of what is
    coded; `left` once it is known.
    """

    bands: Array
    s: Array
    z: Array
    y: Array
    price: Array
    size: tuple[int, int]
    likeness: Likeness | None = None
    left: _Left | None = None


class _Scales:
    """An image at the scales that are asked for, each of them split and analysed once."""

    def __init__(
        self,
        image: NDArray[np.uint8],
        analyse: Callable[[Array, tuple[int, int]], _Latents],
    ) -> None:
        self._image, self._analyse = image, analyse
        self._split: dict[int, tuple[Array, tuple[int, int]]] = {}
        self._analysed: dict[int, _Latents] = {}

    def size(self, scale: int) -> tuple[int, int]:
        """Height and width that are coded."""
        height, width = self._image.shape[:2]
        return bitstream.coded_size(height, width, scale)

    def bands(self, scale: int) -> Array:
        """float32 [48, h, w]."""
        if scale not in self._split:
            self._split[scale] = _split(self._image, scale)
        return self._split[scale][0]

    def latents(self, scale: int) -> _Latents:
        if scale not in self._analysed:
            self.bands(scale)
            self._analysed[scale] = self._analyse(*self._split[scale])
        return self._analysed[scale]


@dataclass
class _Left:
    """A coded base and what it leaves: residual float32 [num_residual, hy, wy]."""

    base: CodedBase
    residual: Array


def _split(image: NDArray[np.uint8], scale: int) -> tuple[Array, tuple[int, int]]:
    """Bands of an image at a scale, and height and width of what they are of."""
    with stage("split"):
        coded = imaging.downscale(image, scale)
        return split_bands(coded), coded.shape[:2]


def _prompt(
    entropy: EntropyModel, levels: Levels, quality: int, *, residual: bool = False
) -> Prompt:
    """What the student is told, with or without the residual; quality in quarter steps."""
    return Prompt(
        visual=entropy.visual_prompt(levels, quality)[None],
        s_hat=entropy.semantics(levels, quality)[None],
        quality=np.array([quality / bitstream.MAX_QUALITY], np.float32),
        residual=entropy.residual(levels, quality)[None] if residual else None,
    )


def read_levels(
    data: bytes | bytearray | memoryview, model: Model, max_pixels: int
) -> tuple[Header, int, Levels]:
    """Decode a file as far as it is integers: header, check and levels.

    Raises:
      BitstreamError, ModelError: as in `Decoder.decode`.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise BitstreamError(f"expected bytes, got {type(data).__name__}")
    header, check, payload = bitstream.unpack(bytes(data))
    if header.height * header.width > max_pixels:
        raise BitstreamError(
            f"the image has {header.width} x {header.height} pixels, over max_pixels={max_pixels}"
        )
    if header.model_id != model.entropy.model_id:
        raise ModelError(
            f"the file needs model {header.model_id:04x}; this decoder has {model.name} "
            f"({model.entropy.model_id:04x}); installed: {installed()}"
        )
    return header, check, model.entropy.decode(payload, header.quality, header.latent_size)


def _estimated(first: int, last: int) -> list[int]:
    """Qualities first .. last at which bytes are estimated."""
    return [*range(first, last, _ESTIMATE_EVERY), last]


def _largest_scale(height: int, width: int) -> int:
    """The first scale at which the coded size is within the format's limit."""
    scale = 0
    while math.prod(bitstream.coded_size(height, width, scale)) > bitstream.MAX_CODED_PIXELS:
        scale += 1
    return scale


def _check_shape(name: str, output: Array, expected: tuple[int, ...]) -> None:
    if output.shape != expected:
        raise ModelError(f"the graph gave {name} as {list(output.shape)}, not {list(expected)}")


def _check_likeness(found: Any, shape: tuple[int, ...]) -> tuple[float, Array]:
    """Distance and gradient as `Encoder.encode` wants them."""
    try:
        first, second = found
        distance, gradient = float(first), np.asarray(second, np.float32)
    except (TypeError, ValueError) as error:
        raise OptionError(f"likeness gave no distance and gradient: {error}") from error
    if not math.isfinite(distance) or gradient.shape != shape or not np.isfinite(gradient).all():
        raise OptionError(
            f"likeness gave the distance {distance} and a gradient {list(gradient.shape)}; "
            f"both must be finite, and the gradient {list(shape)}"
        )
    return distance, gradient


def _check_count(name: str, value: int, least: int = 1, most: int | None = None) -> int:
    """`value` as an int of at least `least`, and of at most `most` where there is one."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or (most is not None and count > most) or isinstance(value, bool):
        allowed = f"at least {least}" if most is None else f"{least}..{most}"
        raise OptionError(f"{name} is {value!r}; it must be a whole number, {allowed}")
    return count


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    low, high = imaging.MIN_SIDE, imaging.MAX_SIDE
    try:
        height, width = (_check_count("size", side, low, high) for side in size)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"size is {size!r}; (height, width) must be {low}..{high} pixels"
        ) from error
    return height, width


def _check_threads(threads: int | None) -> int | None:
    return None if threads is None else _check_count("threads", threads)


def _check_real(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise OptionError(f"{name} is {value!r}; it must be a number")
    return float(value)


def _check_realism(realism: float) -> float:
    value = _check_real("realism", realism)
    if not 0.0 <= value <= 1.0:
        raise OptionError(f"realism is {realism!r}; it must be 0..1")
    return value


def _check_quality(quality: float) -> int:
    """Quality 0..63 as quarter steps."""
    quarters = 4.0 * _check_real("quality", quality)
    if not 0.0 <= quarters <= bitstream.MAX_QUALITY or quarters != math.floor(quarters):
        raise OptionError(f"quality is {quality!r}; it must be 0..63 in steps of 0.25")
    return int(quarters)
