"""A training run that may be stopped and resumed at any moment: what all runs share.

The schedule follows training time, not steps: a run that is stopped and started again goes on
where its last checkpoint stood, with its learning rate. `OUT/checkpoint.pt` is the state,
`OUT/best.pt` the state that did best so far.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from export.data import BatchKind, face_sampler, read_index
from export.integer_entropy import IntegerConv2d
from export.optim import Muon
from export.precision import device

OUTLIER = 5.0


def rewrite(
    checkpoint: Path, out: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Save what `change` makes of a checkpoint; the folder of `out` is made where there is none."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(change(state), out)


@dataclass
class RunSettings:
    """What shapes any run; stored in the checkpoint."""

    seed: int = 1
    muon_lr: float = 0.002
    muon_decay: float = 0.1
    adam_lr: float = 4e-4
    decay_from: float = 0.35  # share of the time after which the learning rates fall
    ema: float = 0.998


S = TypeVar("S", bound=RunSettings)
M = TypeVar("M", bound=nn.Module)


# Learning rates of AdamW relative to `adam_lr`, by kind of parameter. Biases, table scales and
# means of the entropy model count in integer units of up to hundreds, where steps of 8e-4 would
# never arrive.
ADAM_SCALE = {
    "other": 1.0,
    "gain": 5.0,
    "hidden bias": 40.0,
    "output bias": 300.0,
}


def parameter_kind(name: str, parameter: nn.Parameter, outputs: set[str]) -> str:
    """A key of ADAM_SCALE, or "muon" for the wide convolutions outside the entropy model.

    `outputs`: names of the entropy model's output layers.
    """
    if name.startswith("entropy."):
        module, leaf = name.rsplit(".", 1)
        if leaf == "log2_gain":
            return "gain"
        if leaf in ("s_mean", "s_scale"):
            return "output bias"
        if leaf == "bias":
            return "output bias" if module in outputs else "hidden bias"
        return "other"
    wide = parameter.ndim == 4 and parameter.shape[0] >= 48 and parameter.shape[1] >= 45
    return "muon" if wide else "other"


def split_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters that are trained, by `parameter_kind`."""
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in ("muon", *ADAM_SCALE)}
    outputs = {n for n, m in model.named_modules() if isinstance(m, IntegerConv2d) and m.lo < 0}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[parameter_kind(name, p, outputs)].append(p)
    return groups


def set_rate(group: dict[str, Any], rate: float) -> None:
    """The learning rate of an optimiser's group; a tensor in `export/captured.py`."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


class Run(Generic[M, S]):
    """Model, optimisers, averaged weights, schedule. What is learnt is in the methods to override.

    Args:
      args: `out`, a folder; `init`, a checkpoint to start from when `out` holds none; `minutes`, of
        training in all; `validate_every`, minutes; `override`, settings that hold against those of
        the checkpoint.
    """

    def __init__(self, args: argparse.Namespace, settings: S) -> None:
        self.args, self.settings = args, settings
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.elapsed, self.step, self.images = 0.0, 0, 0
        self.best = math.inf  # what `validate` gave
        state = self._load()
        self.extra: dict[str, Any] = (state or {}).get("extra", {})  # what `extra_state` gave
        if state:
            if state["settings"].keys() <= {field.name for field in fields(settings)}:
                settings = type(settings)(**{**state["settings"], **args.override})
                self.settings = settings
            else:  # what the names shared mean differs too
                print("the checkpoint is of another kind of run: its settings are left", flush=True)
            self.elapsed, self.step, self.images = state["elapsed"], state["step"], state["images"]
            self.best = state.get("best", math.inf)
        self.model = self.build(state)
        self.model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.fresh = True  # the optimisers start without a state, and want a warm-up
        self.ema = {k: v.detach().clone().float() for k, v in self.model.state_dict().items()}
        groups = split_parameters(self.model)
        wide = {"params": groups.pop("muon")}  # which may be none
        self.muon = Muon([wide], settings.muon_lr, decay=settings.muon_decay)
        self.adam = torch.optim.AdamW(
            [{"params": v} for v in groups.values()], settings.adam_lr, weight_decay=0.0
        )
        if state:
            # in the model's order
            self.ema = {k: state["ema"][k].float().to(device()) for k in self.ema}
            self.fresh = False
            for optimiser, key in ((self.muon, "muon"), (self.adam, "adam")):
                # a checkpoint of another run, or of weights alone, starts them afresh
                saved = state.get(key, {}).get("param_groups", [])
                sizes = [len(group["params"]) for group in saved]
                if sizes == [len(group["params"]) for group in optimiser.param_groups]:
                    optimiser.load_state_dict(state[key])
                else:
                    self.fresh = True
        self.rng = np.random.default_rng(settings.seed + self.step)

    # -- to override -----------------------------------------------------------------------------
    def build(self, state: dict[str, Any] | None) -> M:
        """The model, of a checkpoint if there is one; parameters that stay are frozen."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """What `build` needs to know of the model."""
        raise NotImplementedError

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of the next batch, and what to log of it; progress in 0..1."""
        raise NotImplementedError

    def validate(self) -> None:
        """Measure the averaged weights, log, and keep the best."""
        raise NotImplementedError

    def gradients(self, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor | float]]:
        """Loss, norm of the gradients and what to log of the next batch; the gradients, clipped."""
        loss, logs = self.loss(progress)
        self.muon.zero_grad()
        self.adam.zero_grad()
        loss.backward()
        self.after_backward()
        return loss.detach(), self.clip(), logs

    def clip(self) -> Tensor:
        """Clip the gradients to a norm of 1; returns what that of Adam's parameters was."""
        muon, adam = (
            [p for group in optimiser.param_groups for p in group["params"]]
            for optimiser in (self.muon, self.adam)
        )
        nn.utils.clip_grad_norm_(muon, 1.0)
        return nn.utils.clip_grad_norm_(adam, 1.0)

    def update(self) -> None:
        """Let the parameters follow their gradients, and their averages follow them."""
        self.muon.step()
        self.adam.step()
        decay = self.settings.ema
        if device().type != "cuda":  # a recorded step would keep the first number for ever
            decay = min(decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            values = list(self.model.state_dict().values())
            torch._foreach_lerp_(list(self.ema.values()), values, 1 - decay)

    def after_backward(self) -> None:
        """What else learns from a batch."""

    def extra_state(self) -> dict[str, Any]:
        """What else a checkpoint holds, under "extra"."""
        return {}

    # -- for what is overridden --------------------------------------------------------------------
    def feed(self, kinds: list[BatchKind]) -> None:
        """Read the faces of `args.data`: `sampler` cuts batches of them, `val` are to validate on.

        With `args.workers`, processes cut them.
        """
        faces = read_index(Path(self.args.data), "train")
        seed = self.settings.seed + self.step
        self.sampler = face_sampler(faces, seed, kinds, self.args.workers)
        self.val = read_index(Path(self.args.data), "val")

    def judge(self, rows: list[tuple[float, ...]], score: float) -> None:
        """Log what was measured on `val`; keep the state if its score is the lowest so far."""
        with open(self.out / "curve.tsv", "a") as f:
            for row in rows:
                values = [self.elapsed / 60, self.step, self.images, *row]
                f.write("\t".join(f"{v:.6g}" for v in values) + "\n")
                print("val", *(f"{v:.5g}" for v in row), flush=True)
        if score < self.best:
            self.best = score
            self.save("best.pt")

    # --------------------------------------------------------------------------------------------
    def _load(self) -> dict[str, Any] | None:
        for path in (self.out / "checkpoint.pt", self.args.init and Path(self.args.init)):
            if path and path.exists():
                return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
        return None

    def save(self, name: str = "checkpoint.pt") -> None:
        state = {
            "config": self.config(),
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "elapsed": self.elapsed,
            "step": self.step,
            "images": self.images,
            "best": self.best,
            "extra": self.extra_state(),
        }
        temporary = self.out / f"{name}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / name)

    def ema_model(self) -> M:
        model = self.build({"config": self.config(), "model": self.ema})
        return model.eval()

    def run(self) -> None:
        args, s = self.args, self.settings
        budget = args.minutes * 60
        last_save = last_log = last_val = time.time()
        sums: dict[str, Tensor | float] = {}
        count = 0
        typical = 0.0  # running mean of the loss; a batch far above it is not learnt from
        first_step, last_images = self.step, self.images
        stop: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
        while self.elapsed < budget:
            if stop:
                self.save()
                print("stopped by a signal; the checkpoint is up to date", flush=True)
                return
            started = time.time()
            progress = self.elapsed / budget
            scale = 1.0
            if progress > s.decay_from:
                scale = max(0.01, 1 - 0.99 * (progress - s.decay_from) / (1 - s.decay_from))
            warm = min(1.0, (self.step - first_step + 1) / 100) if self.fresh else 1.0
            set_rate(self.muon.param_groups[0], s.muon_lr * scale * warm)
            self.muon.param_groups[0]["decay"] = s.muon_decay
            for group, factor in zip(self.adam.param_groups, ADAM_SCALE.values(), strict=True):
                set_rate(group, s.adam_lr * factor * scale * warm)
            loss, norm, logs = self.gradients(progress)
            value, finite = torch.stack([loss, torch.isfinite(norm).float()]).tolist()
            typical = typical or value
            if finite and value < OUTLIER * typical:
                typical += 0.02 * (value - typical)
                self.update()
            else:
                logs["skipped"] = 1.0
            self.step += 1
            for key, item in {"loss": value, **logs}.items():
                sums[key] = sums.get(key, 0.0) + item
            count += 1
            self.elapsed += time.time() - started
            now = time.time()
            if now - last_log > 30:
                mean = {k: round(float(v) / count, 5) for k, v in sums.items()}
                print(
                    f"{self.elapsed / 60:6.1f} min step {self.step} images {self.images} "
                    f"{(self.images - last_images) / (now - last_log):.1f}/s {mean}",
                    flush=True,
                )
                sums, count, last_log, last_images = {}, 0, now, self.images
            if now - last_save > 240:
                self.save()
                last_save = now
            if now - last_val > args.validate_every * 60:
                self.validate()
                last_val = time.time()
        self.validate()
        self.save()
