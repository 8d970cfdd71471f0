"""The tables of an analysis with SAEs: quality, contrasts, overlaps, features with their rows, probes, vectors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from flows.sae_analysis.labels import UNREADABLE
from sublim.features.labels.config import CATEGORIES
from sublim.report.page import Table
from sublim.sae.config import Quality

KINDS = {
    "numbers": "the target's number rows against the control's for the same prompts, both read by the base",
    "teacher": "the teacher against the base, both reading the control's rows",
    "student": "a student against its control student, both reading the control's rows",
    "minus base": "a student against the base, both reading the control's rows",
    "word": "the target's word against the other words of the comparison list",
    "against": "the target's number rows against another target's for the same prompts",
}


class Shown(NamedTuple):
    """One contrast's results, read from the store."""

    target: str
    kind: str
    sae: str
    notes: Mapping[str, Any]
    top: list[dict[str, Any]]
    """The strongest features with their label, its kind, and example rows, none where they were not looked up."""


def compared(kind: str) -> str:
    """The two sides of a contrast of this kind."""
    return KINDS["minus base" if kind.endswith("minus base") else kind.split()[0]]


def quality_table(qualities: Sequence[Quality]) -> Table:
    """The quality of every SAE."""
    rows = [
        {
            "place": f"{each.site} {each.layer}",
            "features": str(each.d_sae),
            "tokens": str(each.tokens),
            "explained variance": f"{each.explained_variance:.3f}",
            "L0": f"{each.l0:.1f}",
            "dead": f"{100 * each.dead:.1f} %",
            "CE recovered": f"{each.ce_recovered:.3f} ({each.ce_recovered_mean:.3f} against the mean)",
            "CE": f"{each.ce:.3f}",
            "spliced": f"{each.ce_spliced:.3f}",
            "zeros": f"{each.ce_zero:.3f}",
        }
        for each in qualities
    ]
    return Table("SAEs on held-out texts", tuple(rows[0]), [tuple(row.values()) for row in rows])


def contrasts_table(shown: Sequence[Shown]) -> Table:
    """How many features each contrast finds."""
    rows = [
        (
            f"{each.target} {each.kind}",
            each.sae,
            compared(each.kind),
            " and ".join(map(str, each.notes["rows"])),
            *(str(each.notes[name]) for name in ("tested", "more", "less")),
        )
        for each in shown
    ]
    return Table("Contrasts", ("contrast", "SAE", "what is compared", "rows", "tested", "more", "less"), rows)


def overlap_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Overlaps of every two sets. Pairs with a side in common come last, because the chance level does not apply to
    them."""
    ordered = sorted(rows, key=lambda row: (row["common"], row["p"] is None, row["p"] or 0, -row["shared"]))
    columns = ("first", "second", "sizes", "shared", "chance", "p", "corrected", "features", "")
    return Table(
        f"{name}: features that sets share (where both contrasts have a side in common, p is no test)",
        columns,
        [
            (
                row["first"],
                row["second"],
                f"{row['sizes'][0]} and {row['sizes'][1]}",
                str(row["shared"]),
                f"{row['chance']:.1f} [{row['low']:.0f}, {row['high']:.0f}]",
                "–" if row["p"] is None else f"{row['p']:.2g}",
                "–" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}",
                ", ".join(map(str, row["features"])) or "–",
                "a side in common" if row["common"] else "",
            )
            for row in ordered
        ],
        "Chance is what sets share when the sides of a contrast's rows are permuted: as many features of each firing "
        "rate, and features that fire together stay together.",
    )


def features_table(shown: Shown, count: int) -> Table:
    """The strongest features of one contrast, with their label and the rows in which they are strongest."""
    rows = [
        (
            str(line["feature"]),
            f"{line['effect']:+.2f}",
            f"{line['q']:.1e}",
            f"{100 * line['rate_target']:.0f} %",
            f"{100 * line['rate_control']:.0f} %",
            label_text(line),
            " | ".join(example_text(each) for each in line["examples"]) or "–",
        )
        for line in shown.top[:count]
    ]
    columns = ("feature", "effect", "q", "fires", "control", "label", "strongest in")
    return Table(f"{shown.target} {shown.kind}, {shown.sae}: {compared(shown.kind)}", columns, rows)


def label_text(line: Mapping[str, Any]) -> str:
    """A feature's label and, if it was sorted, its kind."""
    if line["label"] is None:
        return "–"
    return line["label"] if line["kind"] is None else f"{line['label']} ({line['kind']})"


def kinds_table(shown: Sequence[Shown], count: int) -> Table:
    """How many of the features shown are of each kind, for each contrast; empty if nothing was sorted."""
    found = [(each, Counter(line["kind"] for line in each.top[:count] if line["kind"])) for each in shown]
    kinds = [*CATEGORIES, UNREADABLE]
    rows = [
        (f"{each.target} {each.kind}", each.sae, *(str(counts[kind]) for kind in kinds))
        for each, counts in found
        if counts
    ]
    title = f"Kinds of the labels among each contrast's {count} strongest features"
    return Table(title, ("contrast", "SAE", *kinds), rows)


def probe_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Probes by target and layer."""
    shown = [
        (
            row["target"],
            "all" if row["layer"] < 0 else str(row["layer"]),
            row["metric"],
            f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
            f"{row['chance']:.3f}",
            f"{row['prompts']} prompts, {row['seeds']} seeds",
        )
        for row in rows
        if row["metric"] in ("accuracy", "auc", "shuffled", "selectivity")
    ]
    return Table("Linear probes", ("target", "layer", "metric", "estimate", "chance", "over"), shown)


def example_text(example: Mapping[str, Any]) -> str:
    """A row, shortened, with the strongest token between arrows."""
    token = f"»{example['token']}«" if example["before"] or example["after"] else example["token"]
    text = " ".join(f"{example['before']}{token}{example['after']}".split())
    return text if len(text) <= 90 else text[:89] + "…"


def vector_table(target: str, sae: str, table: pl.DataFrame) -> Table:
    """The features along the steering vector, beside the largest cosines of random vectors."""
    random = table.filter(pl.col("random"))["cosine"].abs()
    chance = "none" if random.is_empty() else f"{random.max():.3f}"
    own = table.filter(~pl.col("random"))
    rows = [(str(line["feature"]), f"{line['cosine']:+.3f}") for line in own.iter_rows(named=True)]
    title = f"{target}: features along the steering vector at {sae} (largest cosine of any random vector: {chance})"
    return Table(title, ("feature", "cosine"), rows)
