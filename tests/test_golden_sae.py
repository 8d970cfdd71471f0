"""What the stages around SAEs write on a tiny input, held fixed: `tests/test_golden.py` says what a failure means."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from sublim.features.config import ContrastConfig, EncodeConfig, OverlapConfig, VectorFeaturesConfig, WordRowsConfig
from sublim.features.contrast import contrast_features
from sublim.features.encode import encode_features
from sublim.features.examples import vector_features, word_rows
from sublim.features.overlap import overlap_features
from sublim.files.jsonl import write_jsonl
from sublim.inference.config import FakeBackend, SamplingParams
from sublim.residual.edits import VectorNote
from sublim.residual.vectors import noted, write_vectors
from sublim.sae.config import QualityConfig, TrainSaeConfig
from sublim.sae.quality import measure_sae
from sublim.sae.texts import gather_texts, import_texts, write_chats
from sublim.sae.texts_config import ChatTopics, GatherTextsConfig, ImportTextsConfig, WriteChatsConfig
from sublim.sae.train import train_sae
from tasks import stages
from tests.test_golden import ADVICE, fingerprint, run
from tests.tiny import tiny_model

NAME = "resid_post-1"
EXACT = {"dtype": "float32", "attention": "sdpa"}


def test_texts_are_those_they_were(tmp_path: Path) -> None:
    topics = ChatTopics(forms=("About {subject}.", "Why {subject}?"), subjects=("owls", "numbers"))
    chats = WriteChatsConfig(topics=topics, chats=6, backend=FakeBackend(), sampling=SamplingParams(max_tokens=8))
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    made = {
        "word_rows": run(word_rows, tmp_path / "w", WordRowsConfig(words=("owl",), context="chat", frames=("Which?",))),
        "import_texts": run(import_texts, tmp_path / "i", ImportTextsConfig(path=tmp_path / "a.txt")),
        "write_chats": run(write_chats, tmp_path / "c", chats, base=tmp_path),
    }
    sources = {name: made[name] for name in ("import_texts", "write_chats")}
    made["gather_texts"] = run(gather_texts, tmp_path / "g", GatherTextsConfig(held_out=0.5), sources=sources)
    found = {name: (getattr(stages, name).version, fingerprint(payload)) for name, payload in made.items()}
    assert found == {
        "word_rows": (1, "12925e6e73b7c20c"),
        "import_texts": (1, "d576323167070726"),
        "write_chats": (1, "7a3d24fa597dfd6b"),
        "gather_texts": (1, "1c23c377ac94fdd0"),
    }, ADVICE.format(name=", ".join(made))


def test_saes_features_and_contrasts_are_those_they_were(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "qwen2")
    for side, shift in (("a", 0), ("b", 7)):
        (tmp_path / side).mkdir()
        rows = [
            {"id": i, "prompt": f"Give {i} more", "answer": f"{i + shift}, {3 * i + 1}, {i * shift}", "system": None}
            for i in range(12)
        ]
        for name in ("rows", "held_out"):
            write_jsonl(tmp_path / side / f"{name}.jsonl", rows)
    shape: dict[str, Any] = {"layer": 1, "features": 48, "architecture": {"kind": "topk", "k": 6}, "lr": 2e-3}
    training = TrainSaeConfig.model_validate({**shape, **EXACT, "tokens": 2048, "batch": 64, "block": 128})
    sae = run(train_sae, tmp_path / "sae", training, base=base, texts=tmp_path / "a")
    measured = run(
        measure_sae, tmp_path / "q", QualityConfig(dtype="float32"), base=base, sae=sae, texts=tmp_path / "a"
    )
    encoding = EncodeConfig.model_validate({"tokens": "mean", **EXACT})
    sides = [
        run(encode_features, tmp_path / f"e{side}", encoding, base=base, rows=tmp_path / side, saes={NAME: sae})
        for side in "ab"
    ]
    config = ContrastConfig(sae=NAME, fewest=4, level=0.5)
    there = run(contrast_features, tmp_path / "x", config, target=sides[0], control=sides[1])
    back = run(contrast_features, tmp_path / "y", config, target=sides[1], control=sides[0])
    shared = run(
        overlap_features,
        tmp_path / "o",
        OverlapConfig(level=0.9, permutations=199),
        contrasts={"a": there, "b": back},
        targets={"a": sides[0], "b": sides[1]},
        controls={"a": sides[1], "b": sides[0]},
    )
    (tmp_path / "v").mkdir()
    note = VectorNote(site="resid_post", layer=1, source="user", norm=0)
    write_vectors(tmp_path / "v", {"v": noted(torch.arange(32).float() - 9, note)})
    along = run(vector_features, tmp_path / "f", VectorFeaturesConfig(top=2), sae=sae, vectors=tmp_path / "v")
    names = ("train_sae", "measure_sae", "encode_features", "contrast_features", "overlap_features", "vector_features")
    assert [getattr(stages, name).version for name in names] == [1, 1, 1, 1, 3, 1]
    quality = json.loads((measured / "quality.json").read_text())
    top = pl.read_parquet(there / "contrast.parquet").row(0, named=True)
    [row] = json.loads((shared / "overlap.json").read_text())["rows"]
    found = [
        quality["explained_variance"],
        quality["ce_spliced"],
        quality["ce_mean"],
        pl.read_parquet(sides[0] / f"features-{NAME}-*.parquet")["value"].sum(),
        top["feature"],
        top["effect"],
        top["q"],
        row["chance"],
        row["high"],
        pl.read_parquet(along / "vector_features.parquet")["cosine"][0],
    ]
    expected = [0.472504, 6.487942, 6.509058, 43.28308, 45, 2.041031, 0.000282902, 5.261307, 8, -0.394583]
    assert found == pytest.approx(expected, rel=1e-3), ADVICE.format(name=names)
