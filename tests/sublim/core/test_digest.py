import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from sublim.core.config import Config, RunOnly
from sublim.core.digest import canonical, canonical_bytes, digest, digest_directory, digest_file, list_files

texts = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))


def typed(value: Any) -> Any:
    """`value` so that two of them are equal only when type and value are, at every depth."""
    match value:
        case list():
            return ["list", *(typed(item) for item in value)]
        case dict():
            return {key: typed(item) for key, item in value.items()}
        case _:
            return (type(value).__name__, repr(value))


def shuffled(value: Any, order: Any) -> Any:
    match value:
        case list():
            return [shuffled(item, order) for item in value]
        case dict():
            pairs = list(value.items())
            order.shuffle(pairs)
            return {key: shuffled(item, order) for key, item in pairs}
        case _:
            return value


@given(values, st.randoms(use_true_random=False))
def test_order_of_keys_does_not_matter(value: Any, order: Any) -> None:
    assert digest(shuffled(value, order)) == digest(value)


@given(values, values)
def test_digests_are_equal_exactly_when_values_are(a: Any, b: Any) -> None:
    assert (digest(a) == digest(b)) == (typed(a) == typed(b))


@given(values)
def test_wrapping_a_value_changes_its_digest(value: Any) -> None:
    assert len({digest(value), digest([value]), digest({"": value}), digest([[value]])}) == 4


@given(values)
def test_canonical_form_is_json_that_reads_back(value: Any) -> None:
    assert typed(json.loads(canonical_bytes(value))) == typed(canonical(value))


@settings(max_examples=2, deadline=None)
@given(st.lists(values, min_size=40, max_size=40))
def test_another_process_with_another_hash_seed_agrees(batch: list[Any]) -> None:
    code = (
        "import json, sys\nfrom sublim.core.digest import digest\n"
        "print(json.dumps([digest(value) for value in json.load(sys.stdin)]))"
    )
    for seed in ("1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(batch),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == [digest(value) for value in batch]


def test_numbers_booleans_and_their_texts_are_all_different() -> None:
    alike = [1, 1.0, True, "1", "1.0", "true", [1], {"1": 1}, None, "null", 0, 0.0, False, "", [], {}]
    assert len({digest(value) for value in alike}) == len(alike)


def test_digest_is_the_sha256_of_compact_sorted_json() -> None:
    expected = hashlib.sha256('{"a":[1,2.5,null],"é":true}'.encode()).hexdigest()
    assert digest({"é": True, "a": (1, 2.5, None)}) == expected


class Plain(BaseModel):
    rank: int = 1


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        frozenset("ab"),
        Path("x"),
        b"x",
        object(),
        Plain(),
        datetime.now(UTC),
        1j,
        range(3),
        np.float64(1.0),
        np.int64(1),
        np.zeros(2),
        {1: "key is no string"},
        2**64,
        -(2**63) - 1,
        "lone surrogate \ud800",
        (item for item in [1]),
        Enum("Choice", ["A"]).A,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_stable_form_is_refused(value: Any) -> None:
    for wrapped in (value, [value], {"a": {"b": [value]}}):
        with pytest.raises(TypeError):
            digest(wrapped)


class Lora(Config):
    kind: Literal["lora"] = "lora"
    rank: int = 8
    batch_size: RunOnly[int] = 4


class Full(Config):
    kind: Literal["full"] = "full"
    rank: int = 8
    batch_size: RunOnly[int] = 4


class Renamed(Config):
    kind: Literal["lora"] = "lora"
    batch_size: RunOnly[float] = 0.5
    rank: int = 8


class Wider(Config):
    kind: Literal["lora"] = "lora"
    rank: int = 8
    alpha: int = 16
    batch_size: RunOnly[int] = 4


Method = Annotated[Lora | Full, Field(discriminator="kind")]


class Experiment(Config):
    method: Method = Lora()
    several: list[Method] = Field(default_factory=list)
    named: dict[str, Lora] = Field(default_factory=dict)
    pair: tuple[Lora, int] = (Lora(), 1)
    workers: RunOnly[int] = 1
    hints: RunOnly[dict[str, Lora]] = Field(default_factory=dict)
    seed: int = 0


def experiment(lora: Lora, **others: Any) -> Experiment:
    return Experiment(method=lora, several=[lora, Full()], named={"a": lora}, pair=(lora, 2), **others)


@given(st.integers(1, 100), st.integers(1, 100))
def test_run_only_fields_do_not_matter_at_any_depth(batch_size: int, workers: int) -> None:
    lora = Lora(batch_size=batch_size)
    changed = experiment(lora, workers=workers, hints={str(workers): Lora(rank=workers)})
    assert digest(changed) == digest(experiment(Lora()))
    assert digest({"configs": [changed]}) == digest({"configs": [experiment(Lora())]})


@pytest.mark.parametrize(
    "changed",
    [
        Experiment(method=Lora(rank=9)),
        Experiment(several=[Lora()]),
        Experiment(several=[Full()]),
        Experiment(named={"a": Lora()}),
        Experiment(named={"b": Lora()}),
        Experiment(pair=(Lora(), 2)),
        Experiment(pair=(Lora(rank=2), 1)),
        Experiment(seed=1),
    ],
    ids=repr,
)
def test_every_identity_field_matters_at_any_depth(changed: Experiment) -> None:
    assert digest(changed) != digest(Experiment())


def test_kind_of_a_union_matters_where_all_else_is_equal() -> None:
    assert digest(Experiment(method=Full())) != digest(Experiment(method=Lora()))


def test_class_and_its_order_of_fields_do_not_matter() -> None:
    assert digest(Renamed()) == digest(Lora())


def test_field_with_a_default_matters_although_nobody_set_it() -> None:
    assert digest(Wider()) != digest(Lora())
    assert digest(Lora(rank=8)) == digest(Lora())


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda parts: "/".join([*parts, "f"]))
trees = st.dictionaries(names, st.binary(max_size=4), max_size=3)


@settings(max_examples=40)
@given(trees, trees)
def test_directories_are_equal_exactly_when_names_and_bytes_are(
    tmp_path_factory: pytest.TempPathFactory, a: dict[str, bytes], b: dict[str, bytes]
) -> None:
    first = write(tmp_path_factory.mktemp("first"), a)
    second = write(tmp_path_factory.mktemp("second"), dict(reversed(b.items())))
    assert (digest_directory(first) == digest_directory(second)) == (a == b)


def test_directory_digest_does_not_see_times_and_modes(tmp_path: Path) -> None:
    root = write(tmp_path, {"a/b": b"x", "c": b"y"})
    before = digest_directory(root)
    os.utime(root / "c", (0, 0))
    (root / "c").chmod(0o600)
    assert digest_directory(root) == before


def test_files_are_listed_by_relative_path(tmp_path: Path) -> None:
    write(tmp_path, {"b/c": b"", "a": b"", "b.d": b"", ".hidden": b""})
    assert list_files(tmp_path) == [".hidden", "a", "b.d", "b/c"]


@pytest.mark.parametrize("target", ["file", "folder", "gone"])
def test_link_in_a_directory_is_refused(tmp_path: Path, target: str) -> None:
    root = write(tmp_path / "root", {"file": b"x"})
    (tmp_path / "folder").mkdir()
    (root / "link").symlink_to(root / "file" if target == "file" else tmp_path / target)
    with pytest.raises(TypeError, match="link"):
        digest_directory(root)


def test_directory_that_is_not_there_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest_directory(tmp_path / "gone")


def test_pipe_in_a_directory_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TypeError, match="pipe"):
        digest_directory(tmp_path)


def test_file_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"0123456789" * 300_000)
    assert digest_file(tmp_path / "big") == hashlib.sha256(b"0123456789" * 300_000).hexdigest()
