"""Alignment of students with teachers: the cosine between the changes that training made to their residual streams.

v_teacher is a teacher's mean residual stream minus the base's, v_student the student's minus the base's, on the same
text. Students and controls are both trained on numbers, and teachers that were made alike have much in common (cosines
of .8 were measured between two): so v_student - v_control is reported as well, and every cosine stands beside those
with all other teachers' vectors and with v_unique, what is left of v_teacher when their span is taken out.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sublim.core.errors import UserError
from sublim.stats.intervals import t_bounds
from sublim.steering.alignment_config import ALONE, SAME, Alignment, Cosine, Eas, EasConfig, EasTable
from sublim.steering.config import MeanAt
from sublim.steering.means import Side, check_sides, over_halves, read_side


def alignment(
    out: Path,
    config: EasConfig,
    *,
    scratch: Path,
    base: Path,
    teacher: Path,
    students: dict[str, Path],
    controls: dict[str, Path],
    others: dict[str, Path] | None = None,
) -> None:
    """Stage: writes eas.json (`EasTable`) from payloads of means; the keys of students and controls are
    `update/pair`, those of `others` the targets of the other teachers."""
    start = read_side(base)
    places = named_at(start, config.student_at)
    taught = {"": teacher, **dict(sorted((others or {}).items()))}
    vectors = {target: _change(path, start, config.teacher_at) for target, path in taught.items()}
    toward = vectors.pop("")
    generator = torch.Generator().manual_seed(config.seed)
    random = torch.randn(config.random, toward.shape[-1], generator=generator, dtype=toward.dtype)
    table = EasTable(measure=config.measure, rows=[], alignments=[], level=config.level)
    for update in config.updates:
        moved: dict[str, Tensor] = {}
        for kind, payloads in (("student", students), ("control", controls)):
            own = [_change(payloads[f"{update}/{pair}"], start, config.student_at) for pair in range(config.pairs)]
            moved[kind] = torch.stack(own)
        moved["difference"] = moved["student"] - moved["control"]
        measured = moved["student" if config.measure == "alignment_paper" else "difference"]
        for number, at in enumerate(places):
            name = start.note["names"][at]
            layer, chance = int(name.split("/")[1]), cosine_similarity(random, toward[number], dim=-1).tolist()
            cosines = {kind: _cosine(each[:, number], toward[number], config) for kind, each in moved.items()}
            table.rows.append(
                Eas(
                    name=name,
                    layer=layer,
                    update=update,
                    random=chance,
                    student_length=float(moved["student"][:, number].norm(dim=-1).mean() / start.norms[at]),
                    teacher_length=float(
                        toward[number].norm() / start.norms[named_at(start, config.teacher_at)[number]]
                    ),
                    **cosines,
                )
            )
            beside = {target: each[number] for target, each in vectors.items()}
            found = beside_others(measured[:, number], toward[number], beside, config)
            table.alignments.append(
                found.model_copy(update={"name": name, "layer": layer, "update": update, "random": chance})
            )
    (out / "eas.json").write_text(table.model_dump_json(indent=1), encoding="utf-8")


def beside_others(
    moved: Float[Tensor, "s d"], own: Float[Tensor, " d"], others: Mapping[str, Float[Tensor, " d"]], config: EasConfig
) -> Alignment:
    """The students' alignment with their own teacher's vector beside that with the others', at no place as yet."""
    aligned = _cosine(moved, own, config)
    found = Alignment(
        name="",
        layer=0,
        update=0,
        own=aligned,
        others={target: _cosine(moved, each, config) for target, each in others.items()},
        above_others=None,
        unique=None,
        unique_share=None,
        teachers={target: float(cosine_similarity(own, each, dim=0)) for target, each in others.items()},
        random=[],
        reason=None if others else ALONE,
    )
    if not others:
        return found
    elsewhere = np.mean([each.per_pair for each in found.others.values()], axis=0)
    unique = orthogonal_part(own, torch.stack([*others.values()]))
    share = float(unique.square().sum() / own.square().sum())
    return found.model_copy(
        update={
            "above_others": _summary(np.asarray(aligned.per_pair) - elsewhere, config),
            "unique": _cosine(moved, unique, config) if share > 1e-9 else None,
            "unique_share": share,
            "reason": None if share > 1e-9 else SAME,
        }
    )


def orthogonal_part(vector: Float[Tensor, " d"], others: Float[Tensor, "k d"]) -> Float[Tensor, " d"]:
    """What is left of a vector when its projection onto the span of the others is taken out."""
    _, scales, basis = torch.linalg.svd(others.double(), full_matrices=False)
    basis = basis[scales > 1e-9 * scales.max()]
    return vector - ((vector.double() @ basis.mT) @ basis).to(vector.dtype)


def mean_of(side: Side) -> Float[Tensor, "n d"]:
    """The mean over all rows, by name."""
    return over_halves(side.values, side.note["rows"])


def named_at(side: Side, at: MeanAt) -> list[int]:
    """The numbers of the places that were read at these tokens. Raises UserError where none was."""
    found = [number for number, name in enumerate(side.note["names"]) if name.endswith(f"/{at}")]
    if not found:
        raise UserError(f"the activations were not read at {at}: read them there, or compare at other tokens")
    return found


def _change(payload: Path, start: Side, at: MeanAt) -> Float[Tensor, "n d"]:
    """The mean change from the base at these tokens, by place."""
    side = read_side(payload)
    check_sides(side, start)
    return (mean_of(side) - mean_of(start))[named_at(start, at)]


def _cosine(vectors: Float[Tensor, "s d"], toward: Float[Tensor, " d"], config: EasConfig) -> Cosine:
    return _summary(cosine_similarity(vectors, toward, dim=-1).numpy(), config)


def _summary(values: Float[np.ndarray, " s"], config: EasConfig) -> Cosine:
    low, high = t_bounds(values, config.level)
    return Cosine(mean=float(values.mean()), per_pair=values.tolist(), low=low, high=high)
