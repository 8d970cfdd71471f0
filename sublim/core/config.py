"""Configs: frozen, closed values that say what an experiment is; their identity is what a cache key sees."""

from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class RunOnlyMark:
    """Marks a field that changes how a stage runs (speed, memory) and never what it computes."""

    def __repr__(self) -> str:
        return "RUN_ONLY"


class UnsetMark:
    """Marks a field that is part of the identity only where it is set.

    A config that leaves it unset has the cache key that it had before there was such a field.
    """

    def __repr__(self) -> str:
        return "UNSET"


RUN_ONLY = RunOnlyMark()
RunOnly = Annotated[T, RUN_ONLY]
UNSET = UnsetMark()
OmittedWhenUnset = Annotated[T | None, UNSET]


class Config(BaseModel):
    """Base of all configs: immutable, no unknown keys, no NaN; field docstrings are the help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a run-only mark where it would go unseen, as in `RunOnly[int] | None`."""
        for name, field in cls.model_fields.items():
            if not any(isinstance(mark, RunOnlyMark) for mark in field.metadata) and _holds_mark(field.annotation):
                raise TypeError(
                    f"{cls.__name__}.{name}: RunOnly[...] goes around the whole type, as RunOnly[int | None]"
                )
            if UNSET in field.metadata and (field.is_required() or field.default is not None):
                raise TypeError(f"{cls.__name__}.{name}: a field that is omitted when unset has the default None")

    def resolved(self) -> Self:
        """The same config with every `auto` replaced by what this machine gives; called before a key is computed.

        Overridden where a field may be `auto`; such an override must not import torch.
        """
        changes: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            resolved = resolve(value)
            if resolved is not value:
                changes[name] = resolved
        return self.model_copy(update=changes) if changes else self

    def identity(self) -> dict[str, Any]:
        """Every field that bears identity, defaults included; run-only fields and those omitted when unset left out."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if not any(isinstance(mark, RunOnlyMark) for mark in field.metadata)
            and not (UNSET in field.metadata and getattr(self, name) is None)
        }


def _holds_mark(annotation: Any) -> bool:
    annotation = getattr(annotation, "__value__", annotation)  # what an alias of `type X = ...` stands for
    return isinstance(annotation, RunOnlyMark) or any(_holds_mark(part) for part in get_args(annotation))


def resolve(value: Any) -> Any:
    """`value` with the configs inside it resolved; the very same object when nothing changed."""
    match value:
        case Config():
            return value.resolved()
        case list() | tuple():
            items = [resolve(item) for item in value]
            return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
        case dict():
            pairs = {key: resolve(item) for key, item in value.items()}
            return pairs if any(pairs[key] is not value[key] for key in pairs) else value
        case _:
            return value
