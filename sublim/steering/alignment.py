"""Alignment of students with their teacher: the cosine between the changes that training made to their streams.

v_teacher is the teacher's mean residual stream minus the base's, on the same text and tokens. v_student is the
student's minus the base's. Students and controls are both trained on numbers, so v_student - v_control is reported as
well.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sublim.stats.intervals import t_bounds
from sublim.steering.config import Cosine, Eas, EasConfig, EasTable
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
) -> None:
    """Stage: writes eas.json (`EasTable`) from payloads of means; the keys of students and controls are
    `update/pair`."""
    start, goal = read_side(base), read_side(teacher)
    check_sides(goal, start)
    toward = mean_of(goal) - mean_of(start)
    generator = torch.Generator().manual_seed(config.seed)
    random = torch.randn(config.random, toward.shape[-1], generator=generator, dtype=toward.dtype)
    rows: list[Eas] = []
    for update in config.updates:
        moved: dict[str, Tensor] = {}
        for kind, payloads in (("student", students), ("control", controls)):
            sides = [read_side(payloads[f"{update}/{pair}"]) for pair in range(config.pairs)]
            for side in sides:
                check_sides(side, start)
            moved[kind] = torch.stack([mean_of(side) for side in sides]) - mean_of(start)
        moved["difference"] = moved["student"] - moved["control"]
        for number, name in enumerate(start.note["names"]):
            cosines = {kind: _cosine(vectors[:, number], toward[number], config) for kind, vectors in moved.items()}
            rows.append(
                Eas(
                    name=name,
                    layer=int(name.split("/")[1]),
                    update=update,
                    random=cosine_similarity(random, toward[number], dim=-1).tolist(),
                    student_length=float(moved["student"][:, number].norm(dim=-1).mean() / start.norms[number]),
                    teacher_length=float(toward[number].norm() / start.norms[number]),
                    **cosines,
                )
            )
    (out / "eas.json").write_text(EasTable(rows=rows, level=config.level).model_dump_json(indent=1), encoding="utf-8")


def mean_of(side: Side) -> Float[Tensor, "n d"]:
    """The mean over all rows, by name."""
    return over_halves(side.values, side.note["rows"])


def _cosine(vectors: Float[Tensor, "s d"], toward: Float[Tensor, " d"], config: EasConfig) -> Cosine:
    values = cosine_similarity(vectors, toward, dim=-1).tolist()
    low, high = t_bounds(values, config.level)
    return Cosine(mean=float(np.mean(values)), per_pair=values, low=low, high=high)
