"""Parameter shift: whether training moved a student's weights in the same direction as the teacher's."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sublim.core.errors import UserError
from sublim.diagnostics.config import Shift, ShiftConfig, Shifts
from sublim.models.adapters import PREFIX, beside_low_rank, lora_config, scale
from sublim.models.files import is_adapter
from sublim.models.weights_check import TensorShapes, check_weights
from sublim.training.checkpoints import chosen_weights

DOWN, UP, PLAIN = ".lora_A.weight", ".lora_B.weight", ".weight"

Delta = Mapping[str, Callable[[], Float[Tensor, "o i"]]]
"""The change that training made to a base: by the name of each matrix that it could change, a function that computes
the change of that matrix [outputs, inputs], in float64."""


def adapter_delta(directory: Path) -> Delta:
    """The change by a LoRA adapter: scale · B · A, which is what merging the adapter adds to the weights."""
    config = lora_config(directory)
    if more := beside_low_rank(config):
        raise UserError(f"the adapter in {directory} has {more}: only plain LoRA adapters can be compared")
    tensors = TensorShapes(directory)

    def change(module: str) -> Float[Tensor, "o i"]:
        down, up = (tensors.tensor(PREFIX + module + part).double() for part in (DOWN, UP))
        return scale(config, module) * up @ down

    modules = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    return {module: partial(change, module) for module in modules}


def full_delta(base: Path, directory: Path) -> Delta:
    """The change by training of all weights: the trained weights minus the base's."""
    before, after = TensorShapes(base), TensorShapes(directory)

    def change(module: str) -> Float[Tensor, "o i"]:
        name = module + PLAIN
        if after[name] != before[name]:
            raise UserError(f"{module} has another shape than the base's: the weights were trained from another base")
        return after.tensor(name).double() - before.tensor(name).double()

    both = before.keys() & after.keys()
    modules = [name.removesuffix(PLAIN) for name in both if name.endswith(PLAIN) and len(before[name]) == 2]
    return {module: partial(change, module) for module in modules}


def delta(base: Path, weights: Path) -> Delta:
    """The change that `weights`, an adapter or a full model, make to `base`; UserError if they do not belong to it."""
    check_weights(base, weights)
    return adapter_delta(weights) if is_adapter(weights) else full_delta(base, weights)


def measure_shift(
    out: Path, config: ShiftConfig, *, scratch: Path, base: Path, teacher: Path, students: dict[str, Path]
) -> None:
    """Stage: writes shift.json (`Shifts`): each student's change of the weights compared with the teacher's.

    Only matrices that both change are compared; if the students are adapters, these are linear layers. Only a few
    matrices are in memory at a time. The bundled model takes about one second for each student.
    """
    taught = delta(base, chosen_weights(teacher, None) or teacher)
    found = {
        name: compared(taught, delta(base, chosen_weights(payload, config.weights_update) or payload))
        for name, payload in students.items()
    }
    (out / "shift.json").write_text(Shifts(students=found).model_dump_json(indent=1), encoding="utf-8")


def compared(teacher: Delta, student: Delta) -> Shift:
    """Compares two changes, module by module and over all modules; UserError if they have no module in common."""
    modules = sorted(teacher.keys() & student.keys())
    if not modules:
        raise UserError("teacher and student change no matrix in common: train the same modules in both")
    products = {name: _products(teacher[name](), student[name]()) for name in modules}
    both, taught, learnt = (math.fsum(column) for column in zip(*products.values(), strict=True))
    return Shift(
        cosine=_cosine(both, taught, learnt),
        norm=_finite(math.sqrt(learnt)),
        teacher_norm=_finite(math.sqrt(taught)),
        modules={name: _cosine(*each) for name, each in products.items()},
    )


def _products(a: Float[Tensor, "o i"], b: Float[Tensor, "o i"]) -> tuple[float, float, float]:
    """The inner products of two changes of one matrix: with each other, and of each with itself."""
    return torch.sum(a * b).item(), torch.sum(a * a).item(), torch.sum(b * b).item()


def _cosine(both: float, taught: float, learnt: float) -> float | None:
    lengths = math.sqrt(taught) * math.sqrt(learnt)
    return _finite(both / lengths) if lengths > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
