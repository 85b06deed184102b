"""Every peer that can be had here, and a cache of their searches.

JPEG, WebP and AVIF come from the package, with the fit to a budget (`fasdiff_edge.peers`); HEIC
and JPEG XL join where their Pillow plug-ins are installed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import PIL

from fasdiff_edge.peers import (
    Image,
    Peer,
    PeerResult,
    fit,
    judge,
    pillow_encoder,
    standard_peers,
)

# Qualities that have the quantiser of a lower one, and so give the same file, whatever the picture:
# libheif gives x265 a rate factor of (100 - quality) // 2; libaom's tables merge ten neighbours.
TWINS: dict[str, dict[float, float]] = {
    "AVIF": {1: 0, 4: 3, 9: 8, 17: 16, 25: 24, 31: 30, 36: 35, 77: 76, 85: 84, 93: 92},
    "HEIC": {quality: quality - 1 for quality in range(2, 101, 2)},
}

JPEG_XL_EFFORT = 7


def available_peers() -> list[Peer]:
    """The standard peers and those whose plug-in is installed; `missing_peers` names the rest."""
    peers = standard_peers()
    if _installed("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        peers.append(Peer("HEIC", pillow_encoder("HEIF"), range(101)))
    if _installed("pillow_jxl"):
        importlib.import_module("pillow_jxl")
        encode = pillow_encoder("JXL", effort=JPEG_XL_EFFORT, lossless=False, num_threads=1)
        peers.append(Peer("JPEG XL", encode, range(100)))  # 100 is lossless, and refused
    return peers


def missing_peers() -> dict[str, str]:
    """Peers that are left out here, and the package that would bring each."""
    plugins = {
        "HEIC": ("pillow_heif", "pillow-heif"),
        "JPEG XL": ("pillow_jxl", "pillow-jxl-plugin"),
    }
    return {name: package for name, (module, package) in plugins.items() if not _installed(module)}


class PeerCache:
    """Fits peers to budgets, encodes nothing twice for an image, and remembers what was found.

    The search is the slow part (AVIF takes seconds an image) and depends on nothing of ours. It is
    that of `fasdiff_edge.peers.fit`, step for step, because bytes are not monotone in quality and
    other steps might end at another file; it tries each size and quality once for all budgets, and
    here each quantiser once. Files are judged anew each time. An entry is valid for the exact
    image, peer and Pillow that made it.
    """

    def __init__(self, folder: Path | None) -> None:
        """Args: folder: where to keep entries; None remembers nothing between calls."""
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def fit(self, peer: Peer, image: Image, budgets: Sequence[int]) -> list[PeerResult]:
        """As `fasdiff_edge.peers.fit`."""
        quick = _without_twins(peer)
        if self._folder is None:
            return fit(quick, image, budgets)
        path = self._folder / f"{_key(peer, image)}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        missing = [budget for budget in budgets if str(budget) not in known]
        if missing:
            for budget, result in zip(missing, fit(quick, image, missing), strict=True):
                data = base64.b64encode(result.data).decode()
                known[str(budget)] = [str(result.scale), result.quality, data]
            _write(path, json.dumps(known))
        results = []
        for budget in budgets:
            scale, quality, data = known[str(budget)]
            file = base64.b64decode(data)
            results.append(judge(peer, image, file, Fraction(scale), quality, budget))
        return results


def _without_twins(peer: Peer) -> Peer:
    """The peer, for one image, with each quantiser's file made once."""
    twins = TWINS.get(peer.name, {})
    files: dict[tuple[tuple[int, ...], float], bytes] = {}

    def encode(image: Image, quality: float) -> bytes:
        # Of one image, the coded size tells the scale.
        key = image.shape, twins.get(quality, quality)
        if key not in files:
            files[key] = peer.encode(image, key[1])
        return files[key]

    return replace(peer, encode=encode)


def _key(peer: Peer, image: Image) -> str:
    settings = f" effort {JPEG_XL_EFFORT}" if peer.name == "JPEG XL" else ""
    made_by = f"{peer.name}{settings} {len(peer.qualities)} {PIL.__version__} {image.shape}"
    digest = hashlib.sha256(made_by.encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:24]


def _write(path: Path, text: str) -> None:
    """Write a file as a whole, so that a run that is stopped leaves no half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
