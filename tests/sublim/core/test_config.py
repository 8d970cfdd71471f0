import subprocess
import sys
from functools import cached_property
from typing import Annotated, Any, Literal, Optional, Self

import pytest
from pydantic import Field, ValidationError
from typing_extensions import TypeAliasType

from sublim.core.config import Config, RunOnly


class Inner(Config):
    rank: int = 8
    """Rank of the adapter."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision."""
    batch_size: RunOnly[int] = 4
    """Rows at a time."""

    def resolved(self) -> Self:
        return self.model_copy(update={"dtype": "float32"}) if self.dtype == "auto" else self


class Outer(Config):
    inner: Inner = Inner()
    several: list[Inner] = Field(default_factory=list)
    pair: tuple[Inner, int] = (Inner(dtype="float32"), 1)
    named: dict[str, Inner] = Field(default_factory=dict)
    rate: float = 1e-3


def test_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="rnak"):
        Inner.model_validate({"rnak": 3})


def test_config_cannot_be_changed() -> None:
    config = Inner()
    with pytest.raises(ValidationError, match="frozen"):
        config.rank = 9  # type: ignore[misc]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(rate: float) -> None:
    with pytest.raises(ValidationError):
        Outer(rate=rate)


def test_wrong_default_is_refused_when_the_config_is_made() -> None:
    class Wrong(Config):
        rank: Annotated[int, Field(gt=0)] = 0

    with pytest.raises(ValidationError):
        Wrong()


def test_docstring_below_a_field_is_its_description() -> None:
    assert Inner.model_fields["rank"].description == "Rank of the adapter."
    assert Inner.model_json_schema()["properties"]["batch_size"]["description"] == "Rows at a time."


def test_identity_keeps_defaults_and_leaves_out_run_only_fields() -> None:
    assert Inner().identity() == {"rank": 8, "dtype": "auto"}


def test_auto_is_resolved_at_every_depth() -> None:
    auto = Inner()
    outer = Outer(inner=auto, several=[auto, auto], pair=(auto, 3), named={"a": auto})
    resolved = outer.resolved()
    found = [resolved.inner, *resolved.several, resolved.pair[0], resolved.named["a"]]
    assert [item.dtype for item in found] == ["float32"] * 5
    assert resolved.pair[1] == 3
    assert outer.inner.dtype == "auto"


def test_nothing_to_resolve_gives_the_very_same_config() -> None:
    config = Outer(inner=Inner(dtype="bfloat16"))
    assert config.resolved() is config


def test_config_survives_json() -> None:
    config = Outer(several=[Inner(rank=2, batch_size=9)], named={"x": Inner()})
    assert Outer.model_validate_json(config.model_dump_json()) == config


def test_importing_the_core_loads_nothing_heavy() -> None:
    code = (
        "import sys, sublim.core.config, sublim.core.digest, sublim.core.hardware, sublim.core.provenance\n"
        "import sublim.store.folder\n"
        "print([name for name in ('torch', 'transformers', 'prefect', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "hidden",
    [
        RunOnly[int] | None,
        Optional[RunOnly[int]],  # noqa: UP045 - the older spelling
        Annotated[RunOnly[int] | None, Field(gt=0)],
        list[RunOnly[int]],
        TypeAliasType("Named", RunOnly[int]),
    ],
    ids=str,
)
def test_run_only_that_a_key_would_not_see_is_refused_where_the_config_is_defined(hidden: Any) -> None:
    with pytest.raises(TypeError, match=r"Hidden\.batch: RunOnly\[\.\.\.\] goes around the whole type"):

        class Hidden(Config):
            """A mark that a key would not see."""

            batch: hidden
            """Rows at a time."""


def test_a_copy_with_other_values_forgets_what_was_derived_from_the_old_ones() -> None:
    class Doubled(Config):
        """A value and what follows from it."""

        value: int = 1
        """The value."""

        @cached_property
        def twice(self) -> int:
            return 2 * self.value

    first = Doubled()
    assert first.twice == 2
    assert first.model_copy(update={"value": 5}).twice == 10
    assert first.twice == 2


def test_run_only_around_the_whole_type_stays_out_of_identity_whatever_else_the_field_says() -> None:
    class Seen(Config):
        """Marks that a key sees."""

        batch: RunOnly[int | None] = None
        """Rows at a time."""
        limit: Annotated[RunOnly[int], Field(gt=0)] = 1
        """Rows at most."""

    assert Seen(batch=2, limit=3).identity() == {} == Seen().identity()
