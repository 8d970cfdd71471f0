"""The search space: which settings of a student are searched, in which ranges, and whether the settings accept them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, assert_never, cast

from optuna import Trial, create_trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from sublim.core.errors import UserError
from sublim.search.config import Choice, FloatRange, IntRange, Multiple, Range, Value
from sublim.training.config import TrainConfig

Space = Mapping[str, Range]


def parameter(path: str, searched: Range) -> str:
    """The name in the study of the searched field `path`. For a multiple it names the factor and not the field."""
    return f"{path}/{searched.of}" if isinstance(searched, Multiple) else path


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The parameters of a study, in the order in which they are drawn, as Optuna's distributions."""
    return {parameter(path, searched): _distribution(searched) for path, searched in space.items()}


def _distribution(searched: Range) -> BaseDistribution:
    match searched:
        case FloatRange():
            return FloatDistribution(**searched.model_dump(exclude={"kind"}))
        case IntRange():
            return IntDistribution(**searched.model_dump(exclude={"kind"}))
        case Choice() | Multiple():
            return CategoricalDistribution(searched.values)
        case _:
            assert_never(searched)


def suggest(trial: Trial, space: Space) -> dict[str, Value]:
    """The parameters of a trial, drawn in the order of the search space."""
    return {name: trial._suggest(name, each) for name, each in distributions(space).items()}  # pyright: ignore[reportPrivateUsage]


def student_with(student: TrainConfig, space: Space, params: Mapping[str, Value]) -> TrainConfig:
    """`student` with the drawn parameters set. Raises UserError if the settings do not accept them together."""
    tree = student.model_dump()
    # Multiples come last, because the field that they multiply may be searched itself.
    for path, searched in sorted(space.items(), key=lambda each: isinstance(each[1], Multiple)):
        value: Any = params[parameter(path, searched)]
        _put(tree, path, value * _get(tree, searched.of) if isinstance(searched, Multiple) else value)
    return _accepted(tree, f"parameters {dict(params)}")


def params_of(student: TrainConfig, space: Space) -> dict[str, Value] | None:
    """The parameters that give `student` itself, or None if it lies outside the search space."""
    tree, found = student.model_dump(), dict[str, Value]()
    for path, searched in space.items():
        value = _get(tree, path)
        if isinstance(searched, Multiple):
            ratio = value / _get(tree, searched.of)
            value = next((factor for factor in searched.values if math.isclose(factor, ratio)), None)
        found[parameter(path, searched)] = value
    try:
        create_trial(params=found, distributions=distributions(space), value=0.0)
    except ValueError:  # as Optuna says that a value is outside its distribution
        return None
    return found


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
