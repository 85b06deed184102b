"""Every figure of quality that README and model card show: measure them, and put them there.

    python -m export.recogniser HELPERS/mobilefacenet.onnx build/recogniser.onnx
    python benchmarks/release.py --data FACES --cache runs/peers --recogniser build/recogniser.onnx

Runs rate_distortion.py, fairness.py and realism.py on the sets below, each into a folder of
`results/model-ID` with what it printed as `tables.md`, then replaces the tables after the marks in
README.md and MODEL_CARD.md, one by one. Takes half an hour on two cores. What is said between
the tables is not touched: read it again. With `--latency`, reports of `fasdiff bench` make the
README's table of times instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from measure import OURS, OURS_ALIKE, OURS_FAITHFUL, OURS_REFINED
from tables import markdown

from fasdiff_edge.models import load_model

HERE = Path(__file__).resolve().parent
Table = list[str]  # lines


@dataclass(frozen=True)
class Measurement:
    """A run of one of the programs beside this file."""

    program: str
    arguments: str
    likeness: bool = False  # with the recogniser that the command line names


_BYTES, _BPP = "--size 256 --bytes 300,500,1000", "--size 256 --bpp 0.1,0.2,0.3,0.5"
_REFINED, _ALIKE = "--effort 8", "--effort 16"
MEASUREMENTS = {
    "val-140": Measurement(
        "rate_distortion", f"--split val --limit 140 {_BYTES} --peers JPEG,WebP {_REFINED}"
    ),
    "val-42": Measurement("rate_distortion", f"--split val --limit 42 {_BYTES} {_REFINED}"),
    "portrait-20": Measurement(
        "rate_distortion", f"--split val_portrait --limit 20 {_BYTES} {_REFINED}"
    ),
    "val-14-bpp": Measurement("rate_distortion", f"--split val --limit 14 {_BPP} {_REFINED}"),
    "portrait-8-bpp": Measurement(
        "rate_distortion", f"--split val_portrait --limit 8 {_BPP} {_REFINED}"
    ),
    "val-42-likeness": Measurement(
        "rate_distortion", f"--split val --limit 42 {_BYTES} {_ALIKE}", likeness=True
    ),
    "portrait-20-likeness": Measurement(
        "rate_distortion", f"--split val_portrait --limit 20 {_BYTES} {_ALIKE}", likeness=True
    ),
    "realism": Measurement(
        "realism",
        "--split val --limit 60 --max-sharpness-db 38 --realism 0,1/4,1/2,3/4,1 --steps 1,2,4",
    ),
    "val-700": Measurement(
        "fairness", f"--split val {_BYTES} --peers none --codecs '{OURS_FAITHFUL}'"
    ),
    # where WebP's files are as far away as ours of 500 and 1000 bytes: what groups owe to dlib
    "val-700-webp": Measurement(
        "fairness", "--split val --size 256 --bytes 1300,2000 --peers WebP --codecs WebP"
    ),
}


def tables_in(text: str) -> list[Table]:
    """The Markdown tables of a text."""
    tables: list[Table] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                tables.append([])
            tables[-1].append(line)
        inside = line.startswith("|")
    return tables


def chosen(table: Table, keep: Callable[[list[str]], bool]) -> Table:
    """The rows of a table whose cells are to be kept, under its head."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    return table[:2] + [line for line, row in zip(table[2:], cells, strict=True) if keep(row)]


def replace_tables(text: str, mark: str, tables: Sequence[Table]) -> str:
    """Replace as many tables as are given, the first ones after a mark.

    Raises:
      ValueError: the mark, or so many tables after it, are not there.
    """
    before, found, after = text.partition(f"<!-- {mark} -->\n")
    if not found:
        raise ValueError(f"there is no mark {mark}")
    old = tables_in(after)
    if len(old) < len(tables):
        raise ValueError(f"after {mark} there are {len(old)} tables instead of {len(tables)}")
    at = 0
    for there, new in zip(old, tables, strict=False):
        block = "\n".join(there)
        start = after.index(block, at)
        filled = "\n".join(new)
        after = after[:start] + filled + after[start + len(block) :]
        at = start + len(filled)
    return before + found + after


def refill(path: Path, mark: str, tables: Sequence[Table]) -> None:
    """`replace_tables` in a file."""
    text = replace_tables(path.read_text(encoding="utf-8"), mark, tables)
    path.write_text(text, encoding="utf-8")


def group_table(path: Path) -> Table:
    """Identity of each group at realism 0, a column for each budget, from fairness.py's TSV."""
    with open(path, newline="") as file:
        rows = [
            row for row in csv.DictReader(file, delimiter="\t") if row["codec"] == OURS_FAITHFUL
        ]
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    groups: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["race"], row["gender"]), {})[row["budget"]] = row
    shown: list[dict[str, object]] = []
    for (race, gender), by_budget in groups.items():
        start = {"race": race, "gender": gender, "faces": int(by_budget[budgets[0]]["images"])}
        means = {
            budget: Decimal(f"{float(by_budget[budget]['identity']):.3f}") for budget in budgets
        }
        lost = sum(int(by_budget[budget]["not_same"]) for budget in budgets)
        shown.append({**start, **means, "at 0.6 or more, at any": lost})
    return markdown(shown).splitlines()


def measure(
    name: str,
    data: Path,
    results: Path,
    extra: Sequence[str],
    jobs: int,
    recogniser: Path | None = None,
) -> None:
    """Run one measurement; what it prints is shown, and kept as `tables.md`."""
    what = MEASUREMENTS[name]
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / f"{what.program}.py"), "--data", str(data)]
    command += [*shlex.split(what.arguments), "--results", str(folder), *extra]
    if what.program != "realism":  # which has one process
        command += ["--jobs", str(jobs)]
    if what.likeness:
        command += ["--recogniser", str(recogniser)]
    print("$", *command, flush=True)
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(output, flush=True)
    tables = ["\n".join(table) for table in tables_in(output)]
    (folder / "tables.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")


_ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
_PRECISIONS = {"int8": "INT8"}


def latency_table(reports: Sequence[Path]) -> Table:
    """Whole times of reports of `fasdiff bench`, in their order."""
    rows: list[dict[str, object]] = []
    for path in reports:
        for found in json.loads(path.read_text(encoding="utf-8"))["results"]:
            encode, decode = found["encode"], found["decode"]
            rows.append(
                {
                    "engine": _ENGINES.get(found["engine"], found["engine"]),
                    "graphs": _PRECISIONS.get(found["precision"], found["precision"]),
                    "size": f"{found['size']}x{found['size']}",
                    "bytes": found["bytes"],
                    "steps": found["steps"],
                    "encode, median (p95)": f"{encode['median']:.1f} ({encode['p95']:.1f}) ms",
                    "decode, median (p95)": f"{decode['median']:.1f} ({decode['p95']:.1f}) ms",
                    "cold start": f"{found['cold_start_ms']:.0f} ms",
                    "peak memory": f"{found['peak_mb']:.0f} MB",
                }
            )
    return markdown(rows).splitlines()


def _of_likeness(row: Sequence[str]) -> bool:
    """Whether a row of a comparison tells what following a recogniser brings."""
    cells = set(row)
    return bool(cells & {"PSNR", "dlib distance"} and cells & {OURS_REFINED, OURS_ALIKE})


def fill(root: Path, results: Path) -> None:
    """Put the tables that `measure` kept into README.md and MODEL_CARD.md of a checkout."""

    def kept(name: str, index: int) -> Table:
        return tables_in((results / name / "tables.md").read_text(encoding="utf-8"))[index]

    summary, comparison = 0, 2
    realism = kept("realism", 0)
    short = (OURS_FAITHFUL, f"{OURS}, realism 1", "WebP", "AVIF")
    new = {
        ("README.md", "val-table"): [
            *(kept(name, summary) for name in ("val-140", "val-42", "portrait-20")),
            chosen(kept("val-14-bpp", comparison), lambda row: "SSIM" not in row[1]),
            chosen(realism, lambda row: row[0] in short),
        ],
        ("README.md", "likeness-table"): [
            chosen(kept(name, comparison), _of_likeness)
            for name in ("val-42-likeness", "portrait-20-likeness")
        ],
        ("MODEL_CARD.md", "figures"): [
            kept("val-140", summary),
            group_table(results / "val-700" / "val-256-groups.tsv"),
            kept("val-42", comparison),
            kept("portrait-20", comparison),
            realism,
            kept("val-14-bpp", comparison),
            kept("portrait-8-bpp", comparison),
        ],
    }
    for (name, mark), tables in new.items():
        refill(root / name, mark, tables)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with index.csv")
    parser.add_argument("--only", help=f"some of {','.join(MEASUREMENTS)}")
    parser.add_argument("--model", default="edge")
    parser.add_argument("--cache", type=Path, help="folder that remembers the peers' files")
    parser.add_argument("--recogniser", type=Path, help="of export/recogniser.py, of MobileFaceNet")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (2)")
    parser.add_argument("--results", type=Path, help="folder (results/model-ID)")
    parser.add_argument("--measured", action="store_true", help="measure nothing, fill the tables")
    parser.add_argument("--latency", type=Path, nargs="+", help="reports: fill that table alone")
    args = parser.parse_args(argv)
    if args.latency:
        refill(HERE.parent / "README.md", "latency-table", [latency_table(args.latency)])
        return 0
    if args.data is None and not args.measured:
        parser.error("--data is missing")
    names = args.only.split(",") if args.only else list(MEASUREMENTS)
    if unknown := sorted(set(names) - MEASUREMENTS.keys()):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    model_id = load_model(args.model).entropy.model_id
    results = args.results or HERE / "results" / f"model-{model_id:04x}"
    extra = ["--model", args.model]
    if args.cache:
        extra += ["--cache", str(args.cache)]
    if not args.measured:
        if args.recogniser is None and any(MEASUREMENTS[name].likeness for name in names):
            parser.error("--recogniser is missing")
        for name in names:
            measure(name, args.data, results, extra, args.jobs, args.recogniser)
    fill(HERE.parent, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
