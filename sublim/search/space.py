"""The search space: which settings of a student are searched, in which ranges, and whether the settings accept them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, assert_never, cast

from optuna import Trial
from pydantic import ValidationError

from sublim.core.errors import UserError
from sublim.search.config import Choice, FloatRange, IntRange, Multiple, Range, Value
from sublim.training.config import TrainConfig

Space = Mapping[str, Range]


def parameter(path: str, searched: Range) -> str:
    """The name in the study of the searched field `path`. For a multiple it names the factor and not the field."""
    return f"{path}/{searched.of}" if isinstance(searched, Multiple) else path


def suggest(trial: Trial, space: Space) -> dict[str, Value]:
    """The parameters of a trial, drawn in the order of the search space."""
    return {
        parameter(path, searched): _draw(trial, parameter(path, searched), searched) for path, searched in space.items()
    }


def _draw(trial: Trial, name: str, searched: Range) -> Value:
    match searched:
        case FloatRange():
            return trial.suggest_float(name, searched.low, searched.high, log=searched.log, step=searched.step)
        case IntRange():
            return trial.suggest_int(name, searched.low, searched.high, log=searched.log, step=searched.step)
        case Choice() | Multiple():
            return trial.suggest_categorical(name, list(searched.values))
        case _:
            assert_never(searched)


def student_with(student: TrainConfig, space: Space, params: Mapping[str, Value]) -> TrainConfig:
    """`student` with the drawn parameters set. Raises UserError if the settings do not accept them together."""
    tree = student.model_dump()
    multiples = {path: searched for path, searched in space.items() if isinstance(searched, Multiple)}
    for path, searched in space.items():
        if path not in multiples:
            _put(tree, path, params[parameter(path, searched)])
    for path, searched in multiples.items():
        factor = cast(float, params[parameter(path, searched)])
        _put(tree, path, factor * cast(float, _get(tree, searched.of)))
    return _accepted(tree, f"parameters {dict(params)}")


def params_of(student: TrainConfig, space: Space) -> dict[str, Value] | None:
    """The parameters that give `student` itself, or None if it lies outside the search space."""
    tree, found = student.model_dump(), dict[str, Value]()
    for path, searched in space.items():
        value = _get(tree, path)
        if isinstance(searched, Multiple):
            ratio = value / _get(tree, searched.of)
            value = next((factor for factor in searched.values if math.isclose(factor, ratio)), None)
        if not _inside(searched, value):
            return None
        found[parameter(path, searched)] = value
    return found


def _inside(searched: Range, value: Any) -> bool:
    match searched:
        case FloatRange():
            steps = 0.0 if searched.step is None else (value - searched.low) / searched.step
            return searched.low <= value <= searched.high and math.isclose(steps, round(steps), abs_tol=1e-9)
        case IntRange():
            return searched.low <= value <= searched.high and (value - searched.low) % searched.step == 0
        case Choice() | Multiple():
            return value in searched.values
        case _:
            assert_never(searched)


def check_space(student: TrainConfig, space: Space) -> None:
    """Raises UserError for a range that its field does not accept. The names in `space` must be full names."""
    if not space:
        raise UserError("the space is empty: name at least one field of the student")
    for path, searched in space.items():
        _get(student.model_dump(), path)
        for value in _probes(student, space, searched):
            tree = student.model_dump()
            _put(tree, path, value)
            _accepted(tree, f"space.{path}: {value!r}")


def _probes(student: TrainConfig, space: Space, searched: Range) -> Iterator[Any]:
    """Values that represent the range: its bounds, and for a real number one between them that is no integer."""
    match searched:
        case FloatRange():
            # A field of integers refuses the value between the bounds.
            yield from (searched.low, searched.high, searched.low + (searched.high - searched.low) / math.pi)
        case IntRange():
            yield from (searched.low, searched.high)
        case Choice():
            yield from searched.values
        case Multiple():
            other = space.get(searched.of)
            if isinstance(other, Multiple | Choice):
                raise UserError(f"space: a multiple of {searched.of} needs it to be a range or not searched")
            bounds = (other.low, other.high) if other else (_get(student.model_dump(), searched.of),)
            if not all(isinstance(bound, int | float) for bound in bounds):
                raise UserError(
                    f"space: {searched.of} is not a number and has no multiples: name another field in `of`"
                )
            yield from (factor * bound for factor in searched.values for bound in bounds)
        case _:
            assert_never(searched)


def _accepted(tree: dict[str, Any], what: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        text = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{what} is not accepted: {text[0].lower()}{text[1:]}") from error


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parts, leaf = path.split(".")
    for part in parts:
        tree = tree[part]
    tree[leaf] = value


def _get(tree: dict[str, Any], path: str) -> Any:
    here: Any = tree
    for part in path.split("."):
        if not isinstance(here, dict) or part not in here:
            raise UserError(f"space: the student as it is set has no {path}: leave it out, or set student.method.kind")
        here = cast(Any, here[part])
    return here
