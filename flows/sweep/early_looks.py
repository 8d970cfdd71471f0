"""Answers that must not exist when a plan is frozen: those of the students whose effects the plan is about."""

from collections.abc import Iterator

from flows.pipeline.arms import contrasts
from flows.sweep.cells import Cell, Measured
from flows.sweep.config import TEACHER
from sublim.store.folder import Store
from sublim.store.manifest import Artifact
from tasks.stage import NotThere, looking_up

ASKED = ("ask", "ask_mmlu_pro")
SHARED = ("base_numbers", "second_draw")
"""Arms without a teacher. Their students do not depend on the target, so a study of another target may have asked them
without learning anything about this target."""


def first_answer(cells: list[Cell], store: Store) -> tuple[Cell, Artifact] | None:
    """An answer, to any question, of a student that a cell would train; a pilot on the same seeds has seen it.

    With the cell; None if there is no such answer.
    """
    cell_of = {student.content: cell for cell in cells for student in students_of(cell)}
    for manifest in store.manifests() if cell_of else ():
        weights = manifest.inputs.get("weights") if manifest.artifact.stage in ASKED else None
        if weights and weights["content"] in cell_of:
            return cell_of[weights["content"]], manifest.artifact
    return None


def students_of(cell: Cell) -> Iterator[Artifact]:
    """The students of the cell's arm that are in the store.

    Seeds are looked up one by one, because a single pair of student and control already shows an effect.
    """
    from flows.pipeline.flow import train_models

    arm = None if cell.arm == TEACHER else cell.arm
    names = {each.students for each in contrasts(cell.config, cell.target) if each.arm == arm}
    for seed in cell.seeds:
        try:
            with looking_up():
                made = train_models(cell.ran.model_copy(update={"seeds": (seed,)}))
        except NotThere:
            continue
        yield from (student for name in sorted(names) for student in made.students[name])


def written(store: Store, measured: Measured) -> str:
    """The time of the first answer of a comparison's students, or of the comparison, whichever is earlier (ISO 8601).

    Empty when the comparison is no longer in the store.
    """
    manifest = store.manifest(measured.artifact.stage, measured.artifact.key)
    if manifest is None:
        return ""
    times = [manifest.provenance.started]
    for score in manifest.inputs["students"] if measured.arm not in SHARED else ():
        scored = store.manifest(score["stage"], score["key"])
        asked = scored.inputs["asked"] if scored else None
        answered = store.manifest(asked["stage"], asked["key"]) if asked else None
        times += [answered.provenance.started] if answered else []
    return min(times)
