"""The import of feature labels, from a real S3 server on this machine with the public bucket's layout."""

import gzip
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sublim.core.errors import UserError
from sublim.features.labels.config import LabelsConfig
from sublim.features.labels.neuronpedia import choose, import_labels
from sublim.features.labels.public_bucket import PublicBucket
from tests.sublim.store.buckets import BUCKET, S3, breaking, packed, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("moto") / "log") as server:
        yield server


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def explained(index: int, text: str, model: str | None = None, score: float | None = None) -> dict[str, Any]:
    return {
        "modelId": "gemma-2-9b-it",
        "index": str(index),
        "description": text,
        "explanationModelName": model,
        "scoreV1": score,
        "embedding": [0.25, 0.5],
    }


def imported(config: LabelsConfig, scratch: Path, name: str = "out") -> pl.DataFrame:
    out = scratch.parent / name
    out.mkdir()
    import_labels(out, config, scratch=scratch)
    return pl.read_parquet(out / "labels.parquet")


def test_files_beyond_the_first_page_of_the_listing_are_read(s3: S3, scratch: Path) -> None:
    """A page has 1,000 keys: the border lies within the files that count."""
    files = {f"batch-{i:02d}.jsonl.gz": [explained(i, f"about {i}")] for i in range(50)}
    config = s3.explain("20-gemmascope-res-16k", files)
    s3.put({f"{config.prefix}activations-{i:03d}.txt": b"" for i in range(980)})
    # Neighbours whose names begin alike are other SAEs.
    s3.explain("20-gemmascope-res-16k-x", {"batch-0.jsonl.gz": [explained(7_000, "a neighbour's")]})
    labels = imported(config, scratch)
    assert labels["feature"].to_list() == list(range(50))
    assert labels["description"].to_list() == [f"about {i}" for i in range(50)]
    assert labels.schema == {
        "feature": pl.UInt32, "description": pl.String, "chosen": pl.Boolean, "model": pl.String, "score": pl.Float64
    }  # fmt: skip


def test_all_explanations_are_kept_and_one_is_chosen(s3: S3, scratch: Path) -> None:
    rows = [
        explained(3, "unscored", "gpt-4o-mini"),
        explained(3, "worse", "gpt-4o-mini", 0.2),
        explained(3, "better", "gemini", 0.7),
        explained(5, "b text", "gpt-4o-mini"),
        explained(5, "a text", "gemini"),
        explained(5, "a text", "gemini"),
        explained(5, "  "),
        explained(4, "only one"),
    ]
    config = s3.explain("9-rule", {"batch-0.jsonl.gz": rows[:4], "batch-1.jsonl.gz": rows[4:]})
    labels = imported(config, scratch)
    assert labels.select("feature", "description", "chosen").rows() == [
        (3, "better", True), (3, "worse", False), (3, "unscored", False),
        (4, "only one", True),
        (5, "a text", True), (5, "b text", False),
    ]  # fmt: skip
    preferring = imported(config.model_copy(update={"prefer": ("gpt-4o-mini",)}), scratch, "preferring")
    chosen = preferring.filter("chosen")
    assert chosen["description"].to_list() == ["better", "only one", "b text"], "a score outweighs a preference"


def test_bytes_do_not_depend_on_the_order_of_arrival_nor_on_how_rows_are_spread(s3: S3, scratch: Path) -> None:
    rows = [explained(i % 40, f"text {i % 70}", f"model {i % 3}", i % 5 / 10 if i % 2 else None) for i in range(200)]
    shuffled = random.Random(0).sample(rows, len(rows))
    one = s3.explain("9-order", {f"batch-{i}.jsonl.gz": rows[i::8] for i in range(8)})
    other = s3.explain("10-order", {f"part-{i}.jsonl.gz": shuffled[i::5] for i in range(5)})
    imported(one.model_copy(update={"workers": 8}), scratch, "one")
    imported(other.model_copy(update={"workers": 1}), scratch, "other")
    read = [(scratch.parent / name / "labels.parquet").read_bytes() for name in ("one", "other")]
    assert read[0] == read[1]


def test_a_download_that_breaks_off_goes_on_where_it_ended(s3: S3, scratch: Path) -> None:
    noise = random.Random(1)
    rows = [explained(i, noise.randbytes(400).hex()) for i in range(600)]
    config = s3.explain("9-long", {"batch-0.jsonl.gz": rows})
    size = len(packed(rows))
    assert size > 4 * 60_000
    with breaking(s3.port, after=60_000) as url:
        broken = config.model_copy(update={"endpoint": url, "attempts": 2})
        with pytest.raises(UserError, match=r"broke off 2 times, last at byte \d+ of \d+ .* run again, it goes on"):
            imported(broken, scratch, "first")
        (part,) = scratch.glob("*.part")
        had = part.stat().st_size
        assert 60_000 < had < 2 * 60_000
        assert imported(broken.model_copy(update={"attempts": 20}), scratch, "second").height == 600
    assert not list(scratch.glob("*.part"))


def test_a_file_that_changed_since_its_first_half_is_read_anew(s3: S3, scratch: Path) -> None:
    """The new one is as long: the first half of the old one could be its own."""
    noise = random.Random(2)
    old, new = ([explained(i, noise.randbytes(400).hex()) for i in range(400)] for _ in range(2))
    config = s3.explain("9-changed", {"batch-0.jsonl.gz": old})
    with breaking(s3.port, after=60_000) as url, pytest.raises(UserError, match="broke off"):
        imported(config.model_copy(update={"endpoint": url, "attempts": 1}), scratch, "first")
    s3.explain("9-changed", {"batch-0.jsonl.gz": new})
    assert imported(config, scratch, "second")["description"].to_list() == [row["description"] for row in new]


def test_a_server_that_sends_the_whole_where_a_rest_was_asked_for_is_read_anew(s3: S3, scratch: Path) -> None:
    noise = random.Random(3)
    config = s3.explain("9-deaf", {"batch-0.jsonl.gz": [explained(i, noise.randbytes(400).hex()) for i in range(400)]})
    with breaking(s3.port, after=60_000) as url, pytest.raises(UserError, match="broke off"):
        imported(config.model_copy(update={"endpoint": url, "attempts": 1}), scratch, "first")
    with breaking(s3.port, after=None, deaf=True) as url:
        whole = config.model_copy(update={"endpoint": url, "attempts": 2})
        assert imported(whole, scratch, "second").height == 400


def test_a_file_replaced_between_listing_and_download_is_not_taken_for_the_listed_one(s3: S3, scratch: Path) -> None:
    """Of the very same size: its length tells nothing."""
    config = s3.config("9-replaced")
    key = f"{config.prefix}batch-0.jsonl.gz"
    s3.put({key: b"a" * 100})
    bucket = PublicBucket(LabelsConfig(bucket=BUCKET, endpoint=s3.url, workers=1, timeout=10.0, attempts=2))
    listed = bucket.entries(config.prefix)
    s3.put({key: b"b" * 100})
    with pytest.raises(UserError, match="changed since it was listed"):
        bucket.download(listed, scratch)


def test_a_killed_import_keeps_the_files_it_had(s3: S3, scratch: Path, tmp_path: Path) -> None:
    config = s3.explain("9-killed", {f"batch-{i}.jsonl.gz": [explained(i, f"about {i}")] for i in range(6)})
    (tmp_path / "config.json").write_text(config.model_copy(update={"workers": 1}).model_dump_json())
    code = (
        "import sys; from pathlib import Path; from sublim.features.labels.neuronpedia import import_labels; "
        "from sublim.features.labels.config import LabelsConfig; out, config, scratch = map(Path, sys.argv[1:]); "
        "import_labels(out, LabelsConfig.model_validate_json(config.read_text()), scratch=scratch)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "config.json"), str(scratch)]
    killed = subprocess.run(command, env={**os.environ, "SUBLIM_KILL_AT": "download:file"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in scratch.iterdir() if path.suffix != ".part"}
    assert kept
    assert imported(config, scratch)["feature"].to_list() == list(range(6))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_missing_prefix_says_what_lies_nearby(s3: S3, scratch: Path) -> None:
    s3.explain("9-near-res-16k", {"batch-0.jsonl.gz": [explained(0, "x")]})
    with pytest.raises(
        UserError, match=r"no explanations in v1/gemma-2-9b-it/9-near-res-131k/.*set `source` to one of 9-near-res-16k"
    ):
        imported(s3.config("9-near-res-131k"), scratch, "a")
    with pytest.raises(UserError, match=r"no model 'gemma-2-9b': set `model` to one of gemma-2-9b-it"):
        imported(s3.config("9-near-res-16k", model="gemma-2-9b"), scratch, "b")
    with pytest.raises(UserError, match=r"nothing in v2/: set `root` to one of v1"):
        imported(s3.config("9-near-res-16k", root="v2"), scratch, "c")
    with pytest.raises(UserError, match=r"NoSuchBucket.*check `bucket`"):
        imported(s3.config("9-near-res-16k", bucket="no-such-bucket"), scratch, "d")
    with pytest.raises(UserError, match=r"does not answer .*EndpointConnectionError.* check the network"):
        imported(s3.config("9-near-res-16k", endpoint="http://127.0.0.1:9", timeout=0.5), scratch, "e")


@pytest.mark.parametrize(
    "name", ["../../evil.jsonl.gz", "a/../../../../evil.jsonl.gz", "/etc/evil.jsonl.gz", "..\\evil.jsonl.gz"]
)
def test_an_entry_that_would_leave_its_folder_stops_the_import(name: str, s3: S3, scratch: Path) -> None:
    config = s3.explain("9-evil", {"batch-0.jsonl.gz": [explained(0, "fine")]})
    key = config.prefix + name
    s3.put({key: packed([explained(1, "evil")])})
    try:
        with pytest.raises(UserError, match="leaves its folder: nothing was imported"):
            imported(config, scratch)
    finally:
        s3.client.delete_object(Bucket=BUCKET, Key=key)
    assert [path.name for path in scratch.parent.rglob("*") if path.is_file()] == []


def test_other_files_are_left_alone(s3: S3, scratch: Path) -> None:
    config = s3.explain("9-other", {"batch-0.jsonl.gz": [explained(0, "fine")]})
    s3.put({config.prefix: b"", f"{config.prefix}README.md": b"# hello"})
    assert imported(config, scratch).height == 1


LINE = b'{"index": "1", "description": "fine"}\n'


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (packed([explained(i, f"about {i}") for i in range(500)])[:-200], r"0\.jsonl\.gz is no whole gzip file"),
        (b"<html>no gzip</html>", r"0\.jsonl\.gz is no whole gzip file"),
        (gzip.compress(LINE + b"not JSON\n"), r"0\.jsonl\.gz:2 is not JSON"),
        (gzip.compress(LINE + b"[1]\n"), r"0\.jsonl\.gz:2 is not a JSON object"),
        (gzip.compress(b'{"index": "-1", "description": "x"}'), r"0\.jsonl\.gz:1 has no feature number"),
        (gzip.compress(b'{"index": 4294967296, "description": "x"}'), "has no feature number"),
        (gzip.compress(b'{"index": 1, "description": "x", "layer": "31-gemmascope-res-16k"}'), "explains a feature of"),
        (gzip.compress(b'{"index": 1}'), "explains no feature"),
        (gzip.compress(b'{"index": 1, "description": "' + b"x" * (2 << 20) + b'"}'), "unpacks to more than 1 MiB"),
    ],
    ids=["cut", "html", "text", "list", "negative", "large", "other", "empty", "bomb"],  # gzip writes the time: no id
)
def test_a_bad_file_is_named_and_nothing_is_written(body: bytes, told: str, s3: S3, scratch: Path) -> None:
    config = s3.config("9-bad", largest_mib=1)
    s3.put({f"{config.prefix}batch-0.jsonl.gz": body})
    with pytest.raises(UserError, match=told):
        imported(config, scratch)
    assert not list((scratch.parent / "out").iterdir())


def test_ties_are_broken_by_name_and_text() -> None:
    rows = pl.DataFrame(
        [(1, "b", "m", 0.5), (1, "a", "m", 0.5), (1, "c", "l", 0.5), (1, "0", None, 0.5)],
        schema={"feature": pl.UInt32, "description": pl.String, "model": pl.String, "score": pl.Float64},
        orient="row",
    )
    assert choose(rows, ())["description"].to_list() == ["c", "a", "b", "0"]
