"""Rate-distortion curves as a picture: a panel a figure, a line a codec, bytes on a log scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from identity import SAME_PERSON
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from measure import ALL_OURS, OURS, OURS_ALIKE, OURS_FAITHFUL, OURS_REFINED, Summary

_PANELS: tuple[tuple[str, Callable[[Summary], float]], ...] = (
    ("PSNR [dB]", lambda row: row.psnr),
    ("SSIM", lambda row: row.ssim),
    ("dlib distance, mean", lambda row: row.identity),
    (f"faces at a distance >= {SAME_PERSON} [%]", lambda row: 100.0 * (1.0 - row.recognition)),
)
# Colour, marker and line of each codec; others take their turn in _OTHERS.
_STYLES = {
    OURS: ("#c1121f", "o", "-"),
    OURS_FAITHFUL: ("#212529", "s", "--"),
    OURS_REFINED: ("#212529", "D", "-"),
    OURS_ALIKE: ("#c1121f", "P", ":"),
    "JPEG": ("#8d99ae", "v", "-"),
    "WebP": ("#1d70b8", "^", "-"),
    "AVIF": ("#f08c00", "D", "-"),
    "HEIC": ("#2b8a3e", "P", "-"),
    "JPEG XL": ("#7048b6", "X", "-"),
}
_OTHERS = ("#495057", "*", ":")


def draw_curves(path: Path, summaries: Sequence[Summary], title: str) -> None:
    """Write the curves as a PNG file.

    Args:
      path: of the file; its folder is made.
      summaries: at least one.
      title: what was measured, with the number of images.
    """
    figure = Figure(figsize=(11.0, 8.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever the user's settings
    figure.suptitle(title)
    panels = [axes for row in figure.subplots(2, 2) for axes in row]
    for axes, (label, value) in zip(panels, _PANELS, strict=True):
        _draw_panel(axes, summaries, label, value)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_panel(
    axes: Axes, summaries: Sequence[Summary], label: str, value: Callable[[Summary], float]
) -> None:
    for codec in dict.fromkeys(row.codec for row in summaries):
        rows = [row for row in summaries if row.codec == codec]
        points = sorted((row.mean_bytes, value(row)) for row in rows)
        colour, marker, line = _STYLES.get(codec, _OTHERS)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colour,
            marker=marker,
            linestyle=line,
            linewidth=2.2 if codec in ALL_OURS else 1.2,
            markersize=5.0,
            label=codec,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("bytes an image, mean of whole files (log scale)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if all(math.isnan(value(row)) for row in summaries):
        axes.text(0.5, 0.5, "not measured: no face", transform=axes.transAxes, ha="center")
