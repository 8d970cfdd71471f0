"""Configs: frozen, closed values that say what an experiment is; their identity is what a cache key sees."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Mark(Enum):
    """What sets a field apart from those that are always part of the identity."""

    RUN_ONLY = auto()
    """It changes how a stage runs (speed, memory) and never what it computes."""
    UNSET = auto()
    """It counts only where it is set: a config without it keeps the cache key from before there was such a field."""


RunOnly = Annotated[T, Mark.RUN_ONLY]
OmittedWhenUnset = Annotated[T | None, Mark.UNSET]


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
            if Mark.RUN_ONLY not in field.metadata and _holds_mark(field.annotation):
                raise TypeError(
                    f"{cls.__name__}.{name}: RunOnly[...] goes around the whole type, as RunOnly[int | None]"
                )
            if Mark.UNSET in field.metadata and (field.is_required() or field.default is not None):
                raise TypeError(f"{cls.__name__}.{name}: a field that is omitted when unset has the default None")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values. Unlike pydantic's own it forgets cached properties, which the update may change."""
        made = super().model_copy(update=update, deep=deep)
        for name in made.__dict__.keys() - type(self).model_fields.keys():
            object.__delattr__(made, name)
        return made

    def resolved(self) -> Self:
        """The same config with every `auto` replaced by what this machine gives; called before a key is computed.

        Overridden where a field may be `auto`; such an override must not import torch.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        changes = {name: found for name, value in values.items() if (found := resolve(value)) is not value}
        return self.model_copy(update=changes) if changes else self

    def identity(self) -> dict[str, Any]:
        """Every field that bears identity, defaults included; run-only fields and those omitted when unset left out."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if Mark.RUN_ONLY not in field.metadata
            and not (Mark.UNSET in field.metadata and getattr(self, name) is None)
        }


def _holds_mark(annotation: Any) -> bool:
    annotation = getattr(annotation, "__value__", annotation)  # what an alias of `type X = ...` stands for
    return annotation is Mark.RUN_ONLY or any(_holds_mark(part) for part in get_args(annotation))


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
