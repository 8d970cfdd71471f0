"""Two alignments of students with teachers, told and tabled: each beside all other teachers' vectors."""

from collections.abc import Iterator, Sequence
from typing import Any

from sublim.core.config import Config
from sublim.report.page import Table, bounded
from sublim.steering.alignment_config import ALONE, Alignment, Cosine, Measure

MEANING: dict[Measure, str] = {
    "alignment_paper": "v_student with v_teacher at prompt tokens, after arXiv 2606.00995",
    "alignment_above_control": "v_student − v_control with v_teacher at answer tokens",
}


class AlignmentMatrix(Config):
    """The K x K table of one alignment at one layer, after the last update: students by teachers."""

    measure: Measure
    layer: int
    update: int
    students: list[str]
    """Lines: the target whose teacher's lists they read."""
    teachers: list[str]
    """Columns."""
    cosines: list[list[float]]
    """[students, teachers], means over the students of a line."""
    between_teachers: list[list[float]]
    """[students, teachers]: cosines of the own teacher's vector with each teacher's."""
    own_minus_others: float | None
    """The mean over lines of the own cosine minus the mean of the others'; null with one teacher."""
    reason: str | None = None


def last_of(rows: Sequence[Alignment]) -> list[Alignment]:
    """The rows after the last update."""
    return [row for row in rows if row.update == rows[-1].update]


def alignment_findings(target: str, measure: Measure, rows: Sequence[Alignment]) -> str:
    """What one alignment says of one target, at the layer where it is largest."""
    last = last_of(rows)
    best = max(last, key=lambda row: row.own.mean)
    chance = f"random directions {min(best.random):+.2f} to {max(best.random):+.2f}"
    start = (
        f"{measure} ({MEANING[measure]}) is largest at layer {best.layer} of {len(last)}: {target} {_told(best.own)}"
    )
    if not best.others:
        return f"{start}; {chance}; {best.reason}"
    beside = ", ".join(f"{name} {each.mean:+.2f}" for name, each in best.others.items())
    between = ", ".join(f"{name} {each:+.2f}" for name, each in best.teachers.items())
    share = "" if best.unique_share is None else f" ({100 * best.unique_share:.0f} % of its square)"
    alone = best.reason if best.unique is None else f"{_told(best.unique)}"
    return (
        f"{start}; with other teachers {beside}; above their mean {_told(best.above_others)}; with v_unique, the part "
        f"of {target}'s vector orthogonal to theirs{share}: {alone}; {chance}; {target}'s vector with theirs {between}"
    )


def alignment_tables(target: str, measure: Measure, rows: Sequence[Alignment]) -> Table:
    """One alignment of one target at every place, after every update."""
    others = list(rows[0].others)
    columns = ("place", "updates", target, *others, "own − others", "v_unique", "its share", "random")
    return Table(
        f"{target}: {measure}",
        columns,
        [
            (
                row.name,
                str(row.update or "all"),
                _told(row.own),
                *(f"{row.others[name].mean:+.2f}" for name in others),
                _told(row.above_others),
                _told(row.unique),
                "–" if row.unique_share is None else f"{100 * row.unique_share:.0f} %",
                f"{min(row.random):+.2f} to {max(row.random):+.2f}",
            )
            for row in rows
        ],
        f"Cosine of {MEANING[measure]}, and with every other teacher's vector. v_unique is the part of {target}'s "
        "vector that is orthogonal to all other teachers' vectors."
        + ("" if others else f" {ALONE[0].upper()}{ALONE[1:]}."),
    )


def matrices(found: dict[str, dict[Measure, list[Alignment]]]) -> list[AlignmentMatrix]:
    """The tables of students by teachers, for each measure and layer, from every target's alignments."""
    made: list[AlignmentMatrix] = []
    for measure in MEANING if found else ():
        lines = {target: {row.layer: row for row in last_of(each[measure])} for target, each in found.items()}
        teachers = list(
            dict.fromkeys([*lines, *(name for line in lines.values() for row in line.values() for name in row.others)])
        )
        for layer in next(iter(lines.values())):
            rows = {target: line[layer] for target, line in lines.items()}
            above = [row.above_others.mean for row in rows.values() if row.above_others]
            made.append(
                AlignmentMatrix(
                    measure=measure,
                    layer=layer,
                    update=next(iter(rows.values())).update,
                    students=list(rows),
                    teachers=teachers,
                    cosines=[[_with(row, target, name) for name in teachers] for target, row in rows.items()],
                    between_teachers=[
                        [1.0 if name == target else row.teachers[name] for name in teachers]
                        for target, row in rows.items()
                    ],
                    own_minus_others=sum(above) / len(above) if above else None,
                    reason=None if above else ALONE,
                )
            )
    return made


def _with(row: Alignment, target: str, name: str) -> float:
    return (row.own if name == target else row.others[name]).mean


def matrix_tables(made: Sequence[AlignmentMatrix]) -> Iterator[Table]:
    """A table for each measure: students by teachers at every layer."""
    for measure, meaning in MEANING.items() if made else ():
        own = [each for each in made if each.measure == measure]
        rows = [
            (str(each.layer), student, *(f"{value:+.2f}" for value in line))
            for each in own
            for student, line in zip(each.students, each.cosines, strict=True)
        ]
        note = f"Cosine of {meaning}, after the last update; columns are teachers. " + (own[0].reason or "")
        yield Table(f"{measure}: students by teachers", ("layer", "students of", *own[0].teachers), rows, note.strip())


def flat(row: Alignment) -> dict[str, Any]:
    """One alignment as a line of a CSV file."""
    found: dict[str, Any] = row.model_dump(include={"name", "layer", "update", "unique_share", "reason"})
    cosines = {"own": row.own, **row.others, "above_others": row.above_others, "unique": row.unique}
    for name, cosine in cosines.items():
        found |= {f"{name}_{end}": getattr(cosine, end, None) for end in ("mean", "low", "high")}
    return found


def _told(cosine: Cosine | None) -> str:
    return "–" if cosine is None else bounded(cosine.mean, cosine.low, cosine.high)
