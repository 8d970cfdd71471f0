"""Finds the weights in the payload of a training run: those after the last update or after an earlier one."""

from pathlib import Path

from sublim.core.errors import UserError


def chosen_weights(weights: Path | None, update: int | None) -> Path | None:
    """The directory with the weights that were kept after `update`, by default after the last one.

    `weights` may also be a directory that is not the payload of a training run, or None. It is then returned unchanged,
    and a given `update` raises UserError.
    """
    if weights is not None and any(weights.glob("update-*")):
        return checkpoint(weights, update)
    if update is not None:
        raise UserError(f"weights_update={update} needs the payload of a training run: give one, or leave it out")
    return weights


def checkpoint(trained: Path, update: int | None = None) -> Path:
    """The directory in the training payload `trained` with the weights after `update`, by default after the last one.

    Raises UserError if there are none.
    """
    kept = {int(path.name.removeprefix("update-")): path for path in trained.glob("update-*")}
    if not kept:
        raise UserError(f"{trained} holds no trained weights: give the payload of a training stage")
    update = max(kept) if update is None else update
    if update not in kept:
        raise UserError(f"no weights were kept after update {update}, only after {sorted(kept)}: add it to `keep`")
    return kept[update]
