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
from collections.abc import Sequence
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


def available_peers() -> list[Peer]:
    """The standard peers and those whose plug-in is installed; `missing_peers` names the rest."""
    peers = standard_peers()
    if _installed("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        peers.append(Peer("HEIC", pillow_encoder("HEIF"), range(101)))
    if _installed("pillow_jxl"):
        importlib.import_module("pillow_jxl")
        encode = pillow_encoder("JXL", effort=9, lossless=False, num_threads=1)
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
    """Remembers the files found for a peer, an image and a budget; they are judged anew each time.

    The search is the slow part (AVIF takes seconds an image) and depends on nothing of ours. An
    entry is valid for the exact image, peer and Pillow that made it.
    """

    def __init__(self, folder: Path | None) -> None:
        """Args: folder: where to keep entries; None remembers nothing."""
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def fit(self, peer: Peer, image: Image, budgets: Sequence[int]) -> list[PeerResult]:
        """As `fasdiff_edge.peers.fit`."""
        if self._folder is None:
            return fit(peer, image, budgets)
        path = self._folder / f"{_key(peer, image)}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        missing = [budget for budget in budgets if str(budget) not in known]
        if missing:
            for budget, result in zip(missing, fit(peer, image, missing), strict=True):
                data = base64.b64encode(result.data).decode()
                known[str(budget)] = [str(result.scale), result.quality, data]
            path.write_text(json.dumps(known))
        results = []
        for budget in budgets:
            scale, quality, data = known[str(budget)]
            file = base64.b64decode(data)
            results.append(judge(peer, image, file, Fraction(scale), quality, budget))
        return results


def _key(peer: Peer, image: Image) -> str:
    made_by = f"{peer.name} {len(peer.qualities)} {PIL.__version__} {image.shape}"
    digest = hashlib.sha256(made_by.encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:24]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
