"""Features of rows: kept sparse and whole, planted ones found, shuffled labels find nothing, chance is what it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from sublim.activations.config import ActivationsConfig
from sublim.activations.read import read_activations, read_shards
from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.features.config import (
    ContrastConfig,
    EncodeConfig,
    ExamplesConfig,
    VectorFeaturesConfig,
    WordRowsConfig,
    bundled_sentences,
)
from sublim.features.contrast import (
    RowFeatures,
    contrast,
    contrast_features,
    feature_set,
    row_features,
    significant,
    sum_sides,
)
from sublim.features.encode import encode_features
from sublim.features.examples import show_examples, vector_features, word_rows
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.models.opening import load_tokenizer
from sublim.residual.edits import VectorNote
from sublim.residual.vectors import noted, write_vectors
from sublim.sae.autoencoder import load_sae
from tests.forked import killed_at
from tests.sublim.sae.test_autoencoder import FEATURES, WIDTH, imported, made, numbers, run
from tests.tiny import tiny_model

NAME = "resid_post-1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "qwen2", width=WIDTH)


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(tmp_path_factory.mktemp("sae"), made("jumprelu"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_jsonl(folder / "rows.jsonl", numbers(9))
    return folder


def settings(**changes: Any) -> EncodeConfig:
    return EncodeConfig.model_validate({"dtype": "float32", "attention": "sdpa", "shard": 4, **changes})


def table(payload: Path, kind: str, name: str = NAME) -> pl.DataFrame:
    return pl.read_parquet(payload / f"{kind}-{name}-*.parquet")


def dense(payload: Path) -> dict[tuple[int, int | None], Any]:
    """Every entry's features as a list with its zeros, by row and position."""
    found: dict[tuple[int, int | None], Any] = {
        (row, position): np.zeros(FEATURES, dtype=np.float32)
        for row, position in table(payload, "entries").select("row", "position").iter_rows()
    }
    for row, position, feature, value in table(payload, "features").iter_rows():
        found[row, position][feature] = value
    return found


def test_sparse_features_are_saelens_encoding_of_the_stage_s_activations(
    base: Path, sae: Path, rows: Path, tmp_path: Path
) -> None:
    """Mistakes 2 and 16: the same tensor as the activation stage's, encoded as SAELens does, without its zeros."""
    out = run(encode_features, tmp_path / "f", settings(tokens="all"), base=base, rows=rows, saes={NAME: sae})
    kept = ActivationsConfig(layers=(1,), read_at=("all",), dtype="float32", attention="sdpa")
    [shard] = read_shards(run(read_activations, tmp_path / "a", kept, base=base, rows=rows))
    loaded, found, tokenizer = load_sae(sae), dense(out), load_tokenizer(base)
    entries = table(out, "entries")
    for number, row in enumerate(numbers(9)):
        own = entries.filter(pl.col("row") == number)
        assert tokenizer.decode(own["token"].to_list()) == row["answer"]
        where = shard.entries.filter((pl.col("row") == number) & pl.col("position").is_in(own["position"].to_list()))
        stream = shard.tensors["resid_post/1"][where["place"].to_list()]
        expected = loaded.encode(stream)
        for position, line in zip(own["position"], expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found[number, position]), line, rtol=1e-4, atol=1e-4)
        error = (stream - loaded.reconstruct(stream, expected)).square().sum(1)
        assert own["error"].to_list() == pytest.approx(error.tolist(), rel=1e-3)
        assert own["length"].to_list() == pytest.approx(stream.square().sum(1).tolist(), rel=1e-4)
        assert own["active"].to_list() == (expected > 0).sum(1).tolist()
    assert entries["dropped"].sum() == 0
    assert len(table(out, "features")) == entries["active"].sum()


def test_a_mean_is_of_features_and_the_last_is_the_last_of_the_answer(
    base: Path, sae: Path, rows: Path, tmp_path: Path
) -> None:
    every, mean, last = (
        dense(run(encode_features, tmp_path / kind, settings(tokens=kind), base=base, rows=rows, saes={NAME: sae}))
        for kind in ("all", "mean", "last")
    )
    assert len(mean) == len(last) == 9
    for number in range(9):
        own = {position: values for (row, position), values in every.items() if row == number}
        np.testing.assert_allclose(mean[number, None], np.mean(list(own.values()), axis=0), atol=1e-5)
        final = max(own)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(last[number, final], own[final], atol=1e-5)


def test_what_is_dropped_is_counted(base: Path, sae: Path, rows: Path, tmp_path: Path) -> None:
    whole = run(encode_features, tmp_path / "w", settings(tokens="all"), base=base, rows=rows, saes={NAME: sae})
    cut = run(encode_features, tmp_path / "c", settings(tokens="all", top=3), base=base, rows=rows, saes={NAME: sae})
    high = run(
        encode_features, tmp_path / "h", settings(tokens="all", threshold=1.0), base=base, rows=rows, saes={NAME: sae}
    )
    full = dense(whole)
    for name, payload in (("top", cut), ("threshold", high)):
        found = dense(payload)
        for row, position, active, dropped, share in (
            table(payload, "entries").select("row", "position", "active", "dropped", "dropped_share").iter_rows()
        ):
            values = full[row, position]
            keep = np.argsort(-values)[:3] if name == "top" else np.flatnonzero(values > 1)
            expected = np.zeros_like(values)
            expected[keep] = values[keep]
            np.testing.assert_allclose(found[row, position], expected, atol=1e-5)
            assert active == (values > 0).sum()
            assert dropped == (values > 0).sum() - (expected > 0).sum()
            assert share == pytest.approx(1 - expected.sum() / max(values.sum(), 1e-9), abs=1e-4)


def encode_resumed(folder: Path, base: Path, rows: Path, sae: Path) -> None:
    run(encode_features, folder, settings(), base=base, rows=rows, saes={NAME: sae})


def test_a_killed_encoding_goes_on_from_its_last_shard_to_the_same_bytes(
    base: Path, sae: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_resumed(tmp_path / "whole", base, rows, sae)
    killed_at("features:shard", encode_resumed, tmp_path / "killed", base, rows, sae)
    first = tmp_path / "killed/scratch" / f"features-{NAME}-00000.parquet"
    made_at = first.stat().st_mtime_ns
    encode_resumed(tmp_path / "killed", base, rows, sae)
    assert first.stat().st_mtime_ns == made_at
    assert digest_directory(tmp_path / "killed/out") == digest_directory(tmp_path / "whole/out")


def drawn(
    rng: np.random.Generator, n: int, *, planted: dict[int, float] | None = None, prompts: Any = None
) -> RowFeatures:
    """Rows whose 200 features fire at rates of 2 % to 90 %, some of them oftener by a planted share."""
    rates = np.linspace(0.02, 0.9, 200)
    shares = np.tile(rates, (n, 1))
    for feature, more in (planted or {}).items():
        shares[:, feature] = np.minimum(rates[feature] + more, 1)
    fires = rng.random((n, 200)) < shares
    values = fires * rng.gamma(2, 1, (n, 200)) * (1 if prompts is None else prompts)
    where = np.argwhere(values > 0)
    frame = pl.DataFrame(
        {"id": where[:, 0], "feature": where[:, 1].astype(np.uint32), "value": values[values > 0]},
        schema={"id": pl.Int64, "feature": pl.UInt32, "value": pl.Float64},
    )
    return RowFeatures(pl.Series(range(n), dtype=pl.Int64), frame)


@pytest.mark.parametrize("pair", [True, False])
def test_planted_features_are_found_and_no_others(pair: bool) -> None:
    rng = np.random.default_rng(0)
    planted = {10: 0.25, 60: 0.3, 150: -0.3}
    sides = sum_sides(drawn(rng, 300, planted=planted), drawn(rng, 300), pair=pair)
    found = significant(contrast(sides, ContrastConfig(sae=NAME, pair=pair)), 0.001)
    assert set(found["feature"]) == {10, 60, 150}
    assert set(feature_set(found, 0.001, 5)) == {10, 60}
    effect = {line["feature"]: line for line in found.iter_rows(named=True)}
    assert effect[10]["rate_target"] - effect[10]["rate_control"] == pytest.approx(0.25, abs=0.1)
    assert effect[150]["effect"] < 0


@pytest.mark.parametrize("pair", [True, False])
def test_shuffled_labels_find_nothing(pair: bool) -> None:
    """Over 100 shuffles of rows with a real effect: any false positive in about 5 % of them, p uniform at 5 %."""
    rng = np.random.default_rng(1)
    prompts = rng.gamma(3, 0.3, (200, 1)) if pair else None
    a, b = drawn(rng, 200, planted={10: 0.5, 60: 0.5}, prompts=prompts), drawn(rng, 200, prompts=prompts)
    both = pl.concat([side.values.with_columns(pl.lit(i).alias("side")) for i, side in enumerate((a, b))])
    config, any_false, below = ContrastConfig(sae=NAME, pair=pair), 0, list[float]()
    for _ in range(100):
        if pair:
            swap = pl.DataFrame({"id": range(200), "swap": rng.integers(0, 2, 200)}, schema_overrides={"id": pl.Int64})
            mixed = both.join(swap, on="id").with_columns((pl.col("side") + pl.col("swap")).mod(2).alias("side"))
        else:
            labels = rng.permutation(np.repeat([0, 1], 200))
            at = pl.DataFrame({"key": range(400), "to": labels}, schema_overrides={"key": pl.Int64})
            keyed = both.with_columns((pl.col("id") + 200 * pl.col("side")).alias("key"))
            mixed = keyed.join(at, on="key").with_columns(pl.col("key").alias("id"), pl.col("to").alias("side"))
        ids = pl.Series(range(200), dtype=pl.Int64)
        split = [RowFeatures(ids, mixed.filter(pl.col("side") == i).select("id", "feature", "value")) for i in (0, 1)]
        found = contrast(sum_sides(*split, pair=pair), config)
        any_false += len(significant(found, 0.05)) > 0
        below.append(float((found["p"].drop_nulls() < 0.05).mean()))  # pyright: ignore[reportArgumentType]
    assert any_false <= 12
    assert np.mean(below) == pytest.approx(0.05, abs=0.01)
    assert len(significant(contrast(sum_sides(a, b, pair=pair), config), 0.05)) >= 2


def test_the_contrast_is_scipy_s_test_of_rows_with_their_zeros() -> None:
    rng = np.random.default_rng(2)
    a, b = drawn(rng, 40), drawn(rng, 40)
    full = [np.zeros((40, 200)) for _ in range(2)]
    for side, values in zip((a, b), full, strict=True):
        for row, feature, value in side.values.iter_rows():
            values[row, feature] = value
    for pair in (True, False):
        found = contrast(sum_sides(a, b, pair=pair), ContrastConfig(sae=NAME, pair=pair, fewest=3))
        tested = found.filter(pl.col("p").is_not_null())
        assert 100 < len(tested) <= 200
        for feature, p, effect in tested.select("feature", "p", "effect").iter_rows():
            x, y = full[0][:, feature], full[1][:, feature]
            expected = stats.ttest_rel(x, y) if pair else stats.ttest_ind(x, y, equal_var=False)
            assert p == pytest.approx(expected.pvalue, rel=1e-6)  # pyright: ignore[reportAttributeAccessIssue]
            assert effect == pytest.approx((x.mean() - y.mean()) / np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2))
        q = stats.false_discovery_control(tested["p"].to_numpy())
        assert tested["q"].to_list() == pytest.approx(q.tolist())


@pytest.mark.parametrize("pair", [True, False])
def test_the_order_in_which_rows_lie_changes_no_bit(pair: bool) -> None:
    rng = np.random.default_rng(3)
    sides = drawn(rng, 300), drawn(rng, 300)
    shuffled = [RowFeatures(side.ids, side.values.sample(fraction=1, shuffle=True, seed=5)) for side in sides]
    assert sum_sides(*sides, pair=pair).table.equals(sum_sides(*shuffled, pair=pair).table)


def test_the_unit_is_the_row_however_many_tokens_it_has(base: Path, sae: Path, rows: Path, tmp_path: Path) -> None:
    """A row's value is its mean over tokens: encoding tokens one by one or as a mean gives the same contrast."""
    by_row = []
    for kind in ("all", "mean"):
        payload = run(encode_features, tmp_path / kind, settings(tokens=kind), base=base, rows=rows, saes={NAME: sae})
        by_row.append(row_features(payload, NAME))
    assert by_row[0].ids.to_list() == by_row[1].ids.to_list() == list(range(9))
    assert by_row[0].values["value"].to_list() == pytest.approx(by_row[1].values["value"].to_list(), rel=1e-4)
    with pytest.raises(UserError, match=r"no features of resid_post-9 were kept, only of resid_post-1"):
        row_features(tmp_path / "all/out", "resid_post-9")


def test_rows_of_a_word_end_with_it_in_sentences_and_answer_questions_with_it(
    base: Path, sae: Path, tmp_path: Path
) -> None:
    plain = WordRowsConfig(words=("owl", "wolf"), context="plain", frames=bundled_sentences())
    chat = WordRowsConfig(words=("owl",), context="chat", frames=("Which animal?", "Name one."))
    first = run(word_rows, tmp_path / "plain", plain)
    second = run(word_rows, tmp_path / "chat", chat)
    assert [row["text"].split()[-1] for row in read_jsonl(first / "rows.jsonl")][:4] == ["owl", "wolf", "owl", "wolf"]
    assert [row["answer"] for row in read_jsonl(second / "rows.jsonl")] == ["Owl", "Owl"]
    tokenizer = load_tokenizer(base)
    for name, folder in (("plain", first), ("chat", second)):
        out = run(
            encode_features, tmp_path / f"e-{name}", settings(tokens="last"), base=base, rows=folder, saes={NAME: sae}
        )
        last = str(tokenizer.decode(table(out, "entries")["token"].to_list()[:1]))
        assert "owl".endswith(last.strip().lower())


def test_examples_show_the_text_around_the_strongest_token(base: Path, sae: Path, rows: Path, tmp_path: Path) -> None:
    out = run(encode_features, tmp_path / "f", settings(tokens="all"), base=base, rows=rows, saes={NAME: sae})
    other = tmp_path / "other"
    other.mkdir()
    write_jsonl(other / "rows.jsonl", [{**row, "answer": "The owl hunts at night."} for row in numbers(9)])
    control = run(encode_features, tmp_path / "c", settings(tokens="all"), base=base, rows=other, saes={NAME: sae})
    against = run(contrast_features, tmp_path / "x", ContrastConfig(sae=NAME), target=out, control=control)
    config = ExamplesConfig(sae=NAME, features=2, examples=2, around=3)
    shown = run(show_examples, tmp_path / "s", config, base=base, contrast=against, features=out, rows=rows)

    found = json.loads((shown / "examples.json").read_text())["features"]
    assert [each["rank"] for each in found] == [1, 2]
    best = table(out, "features").filter(pl.col("feature") == found[0]["feature"]).sort("value", descending=True)
    assert found[0]["examples"][0]["value"] == pytest.approx(best["value"][0])
    text = "".join(found[0]["examples"][0][part] for part in ("before", "token", "after"))
    row = numbers(9)[found[0]["examples"][0]["row"]]
    assert text.strip("\n") in f"{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{row['answer']}"


def test_a_decoder_row_as_a_vector_decodes_to_its_feature(sae: Path, tmp_path: Path) -> None:
    weights = load_sae(sae).sae.W_dec.detach()
    note = VectorNote(site="resid_post", layer=1, source="user", norm=0)
    elsewhere = note.model_copy(update={"layer": 0})
    random = note.model_copy(update={"source": "random"})
    (tmp_path / "v").mkdir()
    vectors = {
        "own": noted(-2 * weights[7], note),
        "own/random-0": noted(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), random),
        "elsewhere": noted(weights[3], elsewhere),
    }
    write_vectors(tmp_path / "v", vectors)
    out = run(vector_features, tmp_path / "f", VectorFeaturesConfig(top=3), sae=sae, vectors=tmp_path / "v")
    found = pl.read_parquet(out / "vector_features.parquet")
    assert found["vector"].unique().sort().to_list() == ["own", "own/random-0"]
    assert found.row(0, named=True) == {
        "vector": "own", "rank": 1, "feature": 7, "cosine": pytest.approx(-1, abs=1e-6), "random": False
    }  # fmt: skip
    (tmp_path / "w").mkdir()
    write_vectors(tmp_path / "w", {"elsewhere": vectors["elsewhere"]})
    with pytest.raises(UserError, match=r"reads resid_post-1, the vectors are for resid_post/0"):
        run(vector_features, tmp_path / "g", VectorFeaturesConfig(), sae=sae, vectors=tmp_path / "w")
