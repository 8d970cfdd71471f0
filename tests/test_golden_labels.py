"""What the stages of feature labels write on a tiny input, held fixed (see test_golden)."""

import json
from pathlib import Path

import polars as pl
import pytest

from sublim.features.labels.annotate import annotate, take_labels
from sublim.features.labels.config import AnnotateConfig, TakeLabelsConfig
from sublim.features.labels.neuronpedia import import_labels
from sublim.inference.config import FakeBackend
from tasks import stages
from tests.sublim.store.buckets import s3_server
from tests.test_golden import ADVICE, fingerprint, run

GOLDEN = {
    "import_labels": (1, "66a87b383f2e5741"),
    "take_labels": (1, "987d1d10ec1e65d6"),
    "annotate": (1, "aaa5ea1da0bbe4ae"),
    "annotate by log-probs": (1, "48d08abfba39d8f0"),
}


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("golden")
    with s3_server(root / "moto") as s3:
        rows = [{"index": i % 3, "description": f"owls {i}", "scoreV1": i / 8 if i % 2 else None} for i in range(8)]
        found = run(import_labels, root / "labels", s3.explain("9-golden", {"batch-0.jsonl.gz": rows}))
    taken = run(take_labels, root / "taken", TakeLabelsConfig(path=found / "labels.parquet"))
    given = AnnotateConfig(backend=FakeBackend(), by="generation", layer=9)
    written = run(annotate, root / "annotated", given, labels=taken)
    scored = run(annotate, root / "scored", AnnotateConfig(backend=FakeBackend(), by="log-probs"), labels=taken)
    made = {"import_labels": found, "take_labels": taken, "annotate": written, "annotate by log-probs": scored}
    return {name: _readable(payload, root / f"{name}-text") for name, payload in made.items()}


def _readable(payload: Path, into: Path) -> Path:
    """A payload with its tables as JSON: Parquet's bytes follow from its library."""
    into.mkdir()
    for path in payload.iterdir():
        if path.suffix == ".parquet":
            (into / f"{path.stem}.json").write_text(json.dumps(pl.read_parquet(path).to_dicts()))
        else:
            (into / path.name).write_bytes(path.read_bytes())
    return into


@pytest.mark.parametrize("name", GOLDEN)
def test_light_stage_writes_what_it_wrote(payloads: dict[str, Path], name: str) -> None:
    version = getattr(stages, name.partition(" ")[0]).version
    assert (version, fingerprint(payloads[name])) == GOLDEN[name], ADVICE.format(name=name)
