"""What our bytes buy against the peers' bytes: curves and tables for any folder of pictures.

Prints Markdown tables and writes, under the results folder, `<dataset>-<size>.tsv` (each codec at
each budget), `-best-peers.tsv` (for each figure, the peer whose mean is the best),
`-comparison.tsv` (ours against that peer, beside the targets) and `.png` (the curves). How things
are measured, and what the numbers do not show, is said in `measure.py`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from identity import SAME_PERSON
from measure import (
    ALL_OURS,
    OURS_ALIKE,
    OURS_FAITHFUL,
    OURS_REFINED,
    Summary,
    add_arguments,
    describe,
    obtain,
    summarise,
    title,
)
from plots import draw_curves
from tables import markdown, write_tsv
from targets import SIDE, Target, at_least, at_most, targets_for


@dataclass(frozen=True)
class Metric:
    """A figure by which peers are ranked.

    Attributes:
      name: of the attribute of `Summary`.
      title: as in tables.
      form: how a mean is shown.
      higher: whether higher is better.
      ours: those of our codecs that are held against the best peer.
    """

    name: str
    title: str
    form: str
    higher: bool
    ours: tuple[str, ...]


_FAITHFUL = (OURS_FAITHFUL, OURS_REFINED, OURS_ALIKE)
METRICS = (
    Metric("psnr", "PSNR", "{:.2f} dB", True, _FAITHFUL),
    Metric("ssim", "SSIM", "{:.3f}", True, _FAITHFUL),
    Metric("ms_ssim", "MS-SSIM", "{:.3f}", True, _FAITHFUL),
    Metric("ssimulacra2", "SSIMULACRA2", "{:.1f}", True, ALL_OURS),
    Metric("identity", "dlib distance", "{:.3f}", False, ALL_OURS),
    Metric("recognition", "recognition", "{:.1%}", True, ALL_OURS),
)


@dataclass(frozen=True)
class Comparison:
    """Our mean of a figure at a budget against the best peer's.

    Attributes:
      difference: ours less the peer's, in the figure's unit; points for recognition.
      ratio: ours over the peer's; of the dlib distance only, else NaN.
      target: what is asked, or empty.
      verdict: "met by ..." or "missed by ...", or empty.
    """

    budget: str
    metric: str
    codec: str
    ours: float
    best_peer: str
    peer: float
    difference: float
    ratio: float
    target: str
    verdict: str


def best_peers(summaries: Sequence[Summary]) -> list[tuple[Metric, Summary]]:
    """For each budget and figure, the peer whose mean is the best; of equals, the first.

    A peer whose files are over the budget counts with what they give. Figures that were not
    measured for any peer are left out.
    """
    best = []
    for budget in dict.fromkeys(row.budget for row in summaries):
        peers = [row for row in summaries if row.budget == budget and row.codec not in ALL_OURS]
        for metric in METRICS:
            measured = [row for row in peers if not math.isnan(getattr(row, metric.name))]
            if measured:
                choose = max if metric.higher else min
                best.append((metric, choose(measured, key=lambda row: getattr(row, metric.name))))
    return best


def compare(summaries: Sequence[Summary], targets: Mapping[str, Target]) -> list[Comparison]:
    """Ours against the best peer of each figure."""
    ours = {(row.budget, row.codec): row for row in summaries}
    return [
        _comparison(metric, ours[peer.budget, codec], peer, targets.get(peer.budget, Target()))
        for metric, peer in best_peers(summaries)
        for codec in metric.ours
        if (peer.budget, codec) in ours  # or it was not measured
    ]


def table(summaries: Sequence[Summary]) -> list[dict[str, object]]:
    """The summaries as they are shown: rounded, without what was not measured at all."""
    metrics = [
        metric
        for metric in METRICS
        if not all(math.isnan(getattr(row, metric.name)) for row in summaries)
    ]
    rows = []
    for row in summaries:
        shown: dict[str, object] = {
            "budget": row.budget,
            "codec": row.codec,
            "mean bytes": f"{row.mean_bytes:.0f}",
            "over budget": f"{row.share_over_budget:.0%}",
        }
        for metric in metrics:
            shown[metric.title] = metric.form.format(getattr(row, metric.name))
        if any(other.faces for other in summaries):
            shown[f"distance >= {SAME_PERSON}"] = f"{row.not_same} of {row.faces}"
        rows.append(shown)
    return rows


def best_peer_table(summaries: Sequence[Summary]) -> list[dict[str, object]]:
    """The best peer of each budget and figure, as shown."""
    return [
        {
            "budget": peer.budget,
            "figure": metric.title,
            "best peer": peer.codec,
            "mean": metric.form.format(getattr(peer, metric.name)),
            "mean bytes": f"{peer.mean_bytes:.0f}",
            "over budget": f"{peer.share_over_budget:.0%}",
        }
        for metric, peer in best_peers(summaries)
    ]


def comparison_table(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """The comparisons, as shown."""
    metrics = {metric.title: metric for metric in METRICS}
    return [
        {
            "budget": row.budget,
            "figure": row.metric,
            "codec": row.codec,
            "ours": metrics[row.metric].form.format(row.ours),
            "best peer": f"{metrics[row.metric].form.format(row.peer)} ({row.best_peer})",
            "against it": _against(row),
            "target": row.target,
            "verdict": row.verdict,
        }
        for row in comparisons
    ]


def verdict_line(comparisons: Sequence[Comparison]) -> str:
    """How many targets are met, and which are missed by how much."""
    judged = [row for row in comparisons if row.verdict]
    missed = [row for row in judged if row.verdict.startswith("missed")]
    if not judged:
        return f"targets: none at these budgets (they are set for faces at {SIDE} x {SIDE})"
    line = f"targets: {len(judged) - len(missed)} of {len(judged)} met"
    parts = [f"{row.budget} {row.metric} ({row.codec}) {row.verdict}" for row in missed]
    return "; ".join([line, *parts])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args(argv)
    run, records = obtain(args, parser)
    summaries = summarise(records)
    comparisons = compare(summaries, targets_for(records))

    start = asdict(run)
    best = [
        {"budget": peer.budget, "metric": metric.name, "best_peer": peer.codec}
        | {"mean": getattr(peer, metric.name), "mean_bytes": peer.mean_bytes}
        | {"share_over_budget": peer.share_over_budget}
        for metric, peer in best_peers(summaries)
    ]
    files = {
        f"{run.stem}.tsv": [asdict(row) for row in summaries],
        f"{run.stem}-best-peers.tsv": best,
        f"{run.stem}-comparison.tsv": [asdict(row) for row in comparisons],
    }
    written = []
    for name, rows in files.items():
        if rows:
            write_tsv(args.results / name, [{**start, **row} for row in rows])
            written.append(name)
    draw_curves(args.results / f"{run.stem}.png", summaries, title(run, records))
    written.append(f"{run.stem}.png")

    print(describe(run, records), end="\n\n")
    print(markdown(table(summaries)), end="\n\n")
    if comparisons:
        print("The best peer of each figure\n")
        print(markdown(best_peer_table(summaries)), end="\n\n")
        print("Ours against the best peer\n")
        print(markdown(comparison_table(comparisons)), end="\n\n")
        print(verdict_line(comparisons), end="\n\n")
    print(f"written to {args.results}: {', '.join(written)}")
    return 0


def _comparison(metric: Metric, ours: Summary, peer: Summary, target: Target) -> Comparison:
    value, best = getattr(ours, metric.name), getattr(peer, metric.name)
    difference, ratio = value - best, math.nan
    asked, verdict = "", ""
    if metric.name == "psnr" and target.psnr_gain is not None:
        asked = f">= +{target.psnr_gain:.1f} dB"
        verdict = at_least(difference, target.psnr_gain, 2, " dB")
    elif metric.name == "identity":
        ratio = value / best if best else math.inf
        if target.identity_ratio is not None:
            asked = f"<= {target.identity_ratio:.1f}x"
            verdict = at_most(ratio, target.identity_ratio, 2, "x")
    elif metric.name == "recognition":
        difference *= 100.0
        lost = 100.0 * (1.0 - best)
        if target.recognition_gain is not None and lost > 0.0:
            gain = min(target.recognition_gain, lost)
            asked = f">= +{gain:.1f} points"
            verdict = at_least(difference, gain, 1, " points")
    return Comparison(
        budget=peer.budget,
        metric=metric.title,
        codec=ours.codec,
        ours=value,
        best_peer=peer.codec,
        peer=best,
        difference=difference,
        ratio=ratio,
        target=asked,
        verdict=verdict,
    )


def _against(row: Comparison) -> str:
    if not math.isnan(row.ratio):
        return f"{row.ratio:.2f}x"
    units = {"PSNR": "{:+.2f} dB", "recognition": "{:+.1f} points"}
    return units.get(row.metric, "{:+.3f}").format(row.difference)


if __name__ == "__main__":
    sys.exit(main())
