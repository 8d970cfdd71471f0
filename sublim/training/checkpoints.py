"""Where a trained model's weights lie: the last ones, or those of an earlier update."""

from pathlib import Path

from sublim.core.errors import UserError


def chosen_weights(weights: Path | None, update: int | None) -> Path | None:
    """The weights that a training payload kept after `update`, by default its last; whatever else as it is."""
    if weights is not None and any(weights.glob("update-*")):
        return checkpoint(weights, update)
    if update is not None:
        raise UserError(f"weights_update={update} needs the payload of a training run: give one, or leave it out")
    return weights


def checkpoint(trained: Path, update: int | None = None) -> Path:
    """The weights that the payload `trained` kept after `update`, by default after the last one."""
    kept = {int(path.name.removeprefix("update-")): path for path in trained.glob("update-*")}
    if not kept:
        raise UserError(f"{trained} holds no trained weights: give the payload of a training stage")
    update = max(kept) if update is None else update
    if update not in kept:
        raise UserError(f"no weights were kept after update {update}, only after {sorted(kept)}: add it to `keep`")
    return kept[update]
