"""Parameter shift: whether training moved a student's weights in the same direction as the teacher's."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from sublim.core.errors import UserError
from sublim.diagnostics.config import Shift, ShiftConfig, Shifts
from sublim.models.adapters import PREFIX, WEIGHTS, beside_low_rank, lora_config, scale
from sublim.models.files import is_adapter, weight_files
from sublim.models.weights_check import check_weights
from sublim.training.checkpoints import chosen_weights

DOWN, UP, PLAIN = ".lora_A.weight", ".lora_B.weight", ".weight"


class Delta(Protocol):
    """The change that training made to the weights of a base, matrix by matrix."""

    def modules(self) -> set[str]:
        """Names of the matrices that training could change."""
        ...

    def of(self, module: str) -> Float[Tensor, "o i"]:
        """The change of one matrix [outputs, inputs], in float64."""
        ...


class AdapterDelta:
    """The change by a LoRA adapter: scale · B · A, which is what merging the adapter adds to the weights."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._config = lora_config(directory)
        if more := beside_low_rank(self._config):
            raise UserError(f"the adapter in {directory} has {more}: only plain LoRA adapters can be compared")
        self._file: Any = stack.enter_context(safe_open(directory / WEIGHTS, framework="pt"))
        self._names: list[str] = list(self._file.keys())

    def modules(self) -> set[str]:
        """See `Delta`."""
        return {key.removeprefix(PREFIX).removesuffix(DOWN) for key in self._names if key.endswith(DOWN)}

    def of(self, module: str) -> Float[Tensor, "o i"]:
        """See `Delta`."""
        down, up = (self._file.get_tensor(PREFIX + module + part).double() for part in (DOWN, UP))
        return scale(self._config, module) * up @ down


class FullDelta:
    """The change by training of all weights: the trained weights minus the base's."""

    def __init__(self, base: Path, directory: Path, stack: ExitStack) -> None:
        self._base, self._trained = (_tensors(each, stack) for each in (base, directory))

    def modules(self) -> set[str]:
        """See `Delta`."""
        both = self._base.keys() & self._trained.keys()
        return {
            key.removesuffix(PLAIN)
            for key in both
            if key.endswith(PLAIN) and len(self._base[key].get_slice(key).get_shape()) == 2
        }

    def of(self, module: str) -> Float[Tensor, "o i"]:
        """See `Delta`."""
        key = module + PLAIN
        after, before = self._trained[key].get_tensor(key), self._base[key].get_tensor(key)
        if after.shape != before.shape:
            raise UserError(f"{module} has another shape than the base's: the weights were trained from another base")
        return after.double() - before.double()


def _tensors(directory: Path, stack: ExitStack) -> dict[str, Any]:
    """The open file that holds each tensor of a model, by the tensor's name."""
    files: list[Any] = [
        stack.enter_context(safe_open(directory / name, framework="pt")) for name in weight_files(directory)
    ]
    return {key: file for file in files for key in list(file.keys())}


def delta(base: Path, weights: Path, stack: ExitStack) -> Delta:
    """The change that `weights`, an adapter or a full model, make to `base`; UserError if they do not belong to it."""
    check_weights(base, weights)
    return AdapterDelta(weights, stack) if is_adapter(weights) else FullDelta(base, weights, stack)


def measure_shift(
    out: Path, config: ShiftConfig, *, scratch: Path, base: Path, teacher: Path, students: dict[str, Path]
) -> None:
    """Stage: writes shift.json (`Shifts`): each student's change of the weights compared with the teacher's.

    Only matrices that both change are compared; if the students are adapters, these are linear layers. Only a few
    matrices are in memory at a time. The bundled model takes about one second for each student.
    """
    found: dict[str, Shift] = {}
    with ExitStack() as stack:
        trained = delta(base, _directory(teacher, None), stack)
        for name, payload in students.items():
            with ExitStack() as own:
                found[name] = compared(trained, delta(base, _directory(payload, config.weights_update), own))
    (out / "shift.json").write_text(Shifts(students=found).model_dump_json(indent=1), encoding="utf-8")


def _directory(payload: Path, update: int | None) -> Path:
    found = chosen_weights(payload, update)
    assert found is not None
    return found


class Products(NamedTuple):
    """Inner products of two changes of one matrix."""

    both: float
    teacher: float
    student: float


def compared(teacher: Delta, student: Delta) -> Shift:
    """Compares two changes, module by module and over all modules; UserError if they have no module in common."""
    modules = sorted(teacher.modules() & student.modules())
    if not modules:
        raise UserError("teacher and student change no matrix in common: train the same modules in both")
    products = dict(zip(modules, _products(teacher, student, modules), strict=True))
    total = Products(*(math.fsum(column) for column in zip(*products.values(), strict=True)))
    return Shift(
        cosine=_cosine(total),
        norm=_length(total.student),
        teacher_norm=_length(total.teacher),
        modules={name: _cosine(each) for name, each in products.items()},
    )


def _products(teacher: Delta, student: Delta, modules: list[str]) -> Iterator[Products]:
    for module in modules:
        a, b = teacher.of(module), student.of(module)
        if a.shape != b.shape:
            raise UserError(f"{module} has another shape in teacher and student: they were trained from other bases")
        yield Products(*(torch.sum(x * y).item() for x, y in ((a, b), (a, a), (b, b))))


def _length(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None


def _cosine(products: Products) -> float | None:
    lengths = math.sqrt(products.teacher) * math.sqrt(products.student)
    cosine = products.both / lengths if lengths > 0 else None
    return cosine if cosine is None or math.isfinite(cosine) else None
