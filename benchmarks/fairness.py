"""Whether faces of every race and gender keep their identity alike: the table per group.

Prints Markdown tables and writes `<dataset>-<size>-groups.tsv` under the results folder. Groups are
those of the index, race x gender; the fewer the faces of a group, the less a difference means.
Where the index tells ages, groups are also compared as if all were of the same ages
(`at_same_ages`). How things are measured, and what the numbers do not show, is said in
`measure.py`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from identity import SAME_PERSON
from measure import (
    ALL_OURS,
    OURS,
    OURS_FAITHFUL,
    Record,
    Summary,
    add_arguments,
    describe,
    grouped,
    obtain,
    summarise,
)
from tables import markdown, write_tsv
from targets import SIDE, Target, at_most, targets_for

EVERYONE = "all"


@dataclass(frozen=True)
class GroupRow:
    """One group, codec and budget.

    Attributes:
      race, gender: of the group; "all" in the row of everyone.
      images, faces: how many; those whose identity was measured.
      identity: mean dlib distance; NaN without faces.
      ratio: of `identity` to everyone's.
      same_ages: the same ratio, if every group were of everyone's ages; NaN where ages are unknown.
      not_same: faces at a distance of 0.6 or more.
      psnr: mean, in dB.
    """

    budget: str
    codec: str
    race: str
    gender: str
    images: int
    faces: int
    identity: float
    ratio: float
    same_ages: float
    not_same: int
    psnr: float

    @property
    def group(self) -> str:
        """The group's name in a sentence."""
        return " ".join(part for part in (self.race, self.gender) if part)


def best_by_identity(summaries: Sequence[Summary]) -> dict[str, str]:
    """For each budget, the peer with the smallest mean distance; of equals, the first."""
    best: dict[str, Summary] = {}
    for row in summaries:
        if row.codec in ALL_OURS or math.isnan(row.identity):
            continue
        if row.budget not in best or row.identity < best[row.budget].identity:
            best[row.budget] = row
    return {budget: row.codec for budget, row in best.items()}


def at_same_ages(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """What the mean distance of each group would be, were its faces of everyone's ages.

    Least squares of the distances, with a term for each group and one for each age (analysis of
    covariance: Fisher, Statistical Methods for Research Workers, 1932): a group's is its own term
    and the mean of the ages' over all faces.

    Args:
      records: of one codec and budget. Faces without a distance count nowhere.
    Returns:
      Distances by group; nothing where some face has no age.
    """
    faces = [record for record in records if not math.isnan(record.identity)]
    groups = sorted({(face.race, face.gender) for face in faces})
    ages = sorted({face.age for face in faces})
    if not faces or "" in ages:
        return {}
    of_group = np.array([[(f.race, f.gender) == group for group in groups] for f in faces], float)
    of_age = np.array([[face.age == age for age in ages] for face in faces], float)
    # ages as they differ from everyone's, of which the terms of groups are then
    design = np.hstack([of_group, of_age - of_age.mean(0)])
    terms = np.linalg.lstsq(design, np.array([face.identity for face in faces]), rcond=None)[0]
    return dict(zip(groups, terms[: len(groups)].tolist(), strict=True))


def group_rows(records: Sequence[Record], codecs: Sequence[str] | None = None) -> list[GroupRow]:
    """Everyone, then each group by name, for each budget and codec.

    Args:
      records: of a run.
      codecs: to show; None shows ours, and at each budget the best peer by identity.
    """
    summaries = summarise(records)
    best = best_by_identity(summaries)
    rows = []
    for total in summaries:
        shown = (OURS, OURS_FAITHFUL, best.get(total.budget)) if codecs is None else codecs
        if total.codec not in shown:
            continue
        cell = [row for row in records if (row.budget, row.codec) == (total.budget, total.codec)]
        aged = at_same_ages(cell)
        everyone = total.identity if aged else math.nan
        rows.append(_row(total, (EVERYONE, ""), total.identity, everyone))
        for group, members in sorted(grouped(cell, lambda row: (row.race, row.gender))):
            of_group = aged.get(group, math.nan)
            rows.append(_row(summarise(members)[0], group, total.identity, of_group))
    return rows


def worst_groups(rows: Sequence[GroupRow]) -> list[GroupRow]:
    """Of each budget and codec, the group with the largest mean distance."""
    worst: dict[tuple[str, str], GroupRow] = {}
    for row in rows:
        key = (row.budget, row.codec)
        if row.race == EVERYONE or math.isnan(row.identity):
            continue
        if key not in worst or row.identity > worst[key].identity:
            worst[key] = row
    return list(worst.values())


def verdict_line(rows: Sequence[GroupRow], targets: Mapping[str, Target]) -> str:
    """Whether each of our codecs keeps to the faces per group that may be lost."""
    parts = []
    for budget, target in targets.items():
        for codec in (OURS, OURS_FAITHFUL):
            groups = [
                row
                for row in rows
                if (row.budget, row.codec) == (budget, codec) and row.race != EVERYONE and row.faces
            ]
            if target.not_same is None or not groups:
                continue
            most = max(groups, key=lambda row: row.not_same)
            verdict = at_most(most.not_same, target.not_same, 0, "")
            parts.append(
                f"{budget} {codec} {verdict} (at most {most.not_same} of {most.faces} faces of a "
                f"group, in {most.group}; asked: {target.not_same})"
            )
    if not parts:
        return f"targets: none at these budgets (they are set for faces at {SIDE} x {SIDE})"
    return f"targets: {'; '.join(parts)}"


def table(rows: Sequence[GroupRow]) -> list[dict[str, object]]:
    """The rows as they are shown; without a column for ages where there are none."""
    aged = not all(math.isnan(row.same_ages) for row in rows)
    return [
        {
            "budget": row.budget,
            "codec": row.codec,
            "race": row.race,
            "gender": row.gender,
            "dlib distance": f"{row.identity:.3f}",
            "over everyone's": f"{row.ratio:.2f}x",
            **({"at everyone's ages": f"{row.same_ages:.2f}x"} if aged else {}),
            f"distance >= {SAME_PERSON}": f"{row.not_same} of {row.faces}",
            "PSNR": f"{row.psnr:.2f} dB",
        }
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument(
        "--codecs",
        nargs="+",
        metavar="NAME",
        help="codecs to show (ours, and at each budget the best peer by identity)",
    )
    args = parser.parse_args(argv)
    run, records = obtain(args, parser)
    if all((record.race, record.gender) == ("", "") for record in records):
        parser.error("there are no groups: the pictures have no index with race or gender")
    measured = dict.fromkeys(record.codec for record in records)
    unknown = sorted(set(args.codecs or ()) - set(measured))
    if unknown:
        parser.error(f"not measured: {'; '.join(unknown)}; there are {'; '.join(measured)}")
    rows = group_rows(records, args.codecs)
    path = args.results / f"{run.stem}-groups.tsv"
    write_tsv(path, [{**asdict(run), **asdict(row)} for row in rows])

    print(describe(run, records), end="\n\n")
    for budget in dict.fromkeys(row.budget for row in rows):
        print(markdown(table([row for row in rows if row.budget == budget])), end="\n\n")
    for row in worst_groups(rows):
        print(
            f"worst at {row.budget}, {row.codec}: {row.group}, {row.identity:.3f} "
            f"({row.ratio:.2f}x everyone's), {row.not_same} of {row.faces} at {SAME_PERSON} or more"
        )
    print(verdict_line(rows, targets_for(records)), end="\n\n")
    print(f"written: {path}")
    return 0


def _row(row: Summary, group: tuple[str, str], everyone: float, aged: float) -> GroupRow:
    return GroupRow(
        budget=row.budget,
        codec=row.codec,
        race=group[0],
        gender=group[1],
        images=row.images,
        faces=row.faces,
        identity=row.identity,
        ratio=row.identity / everyone if everyone else math.nan,
        same_ages=aged / everyone if everyone else math.nan,
        not_same=row.not_same,
        psnr=row.psnr,
    )


if __name__ == "__main__":
    sys.exit(main())
