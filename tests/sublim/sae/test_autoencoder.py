"""SAEs: what SAELens itself gives, refused where they do not fit, trained to the same bytes, measured by hand."""

import json
import math
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from sublim.activations.config import ActivationsConfig
from sublim.activations.read import read_activations
from sublim.activations.token_places import marked_rows
from sublim.core.config import Config
from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.features.config import EncodeConfig
from sublim.features.encode import encode_features
from sublim.files.jsonl import write_jsonl
from sublim.inference.vocabulary import Vocabulary
from sublim.models.opening import load_tokenizer, open_model
from sublim.residual.edits import Place
from sublim.residual.hooks import attached_at
from sublim.sae.autoencoder import check_sae, import_sae, load_sae, note_from_config, read_note, same_model
from sublim.sae.blocks import Cursor, shard_blocks
from sublim.sae.config import FolderSae, ImportSaeConfig, PretrainedSae, Quality, QualityConfig, TrainSaeConfig
from sublim.sae.quality import measure_sae, quality
from sublim.sae.stream import find_opening, own_rows
from sublim.sae.texts import gather_texts, import_texts
from sublim.sae.texts_config import GatherTextsConfig, ImportTextsConfig
from sublim.sae.train import train_sae
from tests.forked import killed_at
from tests.tiny import tiny_model

WIDTH, FEATURES = 32, 48
ARCHITECTURES = ["standard", "topk", "jumprelu"]


def run(stage: Any, folder: Path, config: Config, **inputs: Any) -> Path:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    stage(folder / "out", config, scratch=folder / "scratch", **inputs)
    return folder / "out"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "qwen2", width=WIDTH)


def made(architecture: str, *, layer: int = 1, site: str = "resid_post", width: int = WIDTH, **about: Any) -> SAE[Any]:
    """A random SAE in SAELens' own classes."""
    metadata = SAEMetadata(**({"hook_name": f"blocks.{layer}.hook_{site}", "model_name": "tiny"} | about))
    shape: dict[str, Any] = {"d_in": width, "d_sae": FEATURES, "metadata": metadata}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        match architecture:
            case "standard":
                sae: SAE[Any] = StandardSAE(StandardSAEConfig(**shape))
            case "topk":
                sae = TopKSAE(TopKSAEConfig(**shape, k=5))
            case _:
                sae = JumpReLUSAE(JumpReLUSAEConfig(**shape))
                sae.threshold.data.fill_(0.3)
        sae.b_enc.data.normal_(0, 0.1)
        sae.b_dec.data.normal_(0, 0.1)
    return sae


def imported(folder: Path, sae: SAE[Any]) -> Path:
    sae.save_model(folder / "theirs")
    return run(import_sae, folder / "ours", ImportSaeConfig(source=FolderSae(path=folder / "theirs")))


def numbers(count: int) -> list[dict[str, Any]]:
    lists = [", ".join(str((37 * i + 101 * j) % 900 + 100) for j in range(8)) for i in range(count)]
    return [
        {"id": i, "prompt": f"Continue: {text[:13]}", "answer": text[15:], "system": None}
        for i, text in enumerate(lists)
    ]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    rows = numbers(60)
    write_jsonl(folder / "rows.jsonl", rows[:50])
    write_jsonl(folder / "held_out.jsonl", rows[50:])
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_those_of_saelens_own_encode(architecture: str, tmp_path: Path) -> None:
    sae = made(architecture)
    ours = load_sae(imported(tmp_path, sae))
    stream = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1)) * 3
    with torch.no_grad():
        expected = sae.encode(stream)
        assert torch.equal(ours.encode(stream), expected)
        assert torch.equal(ours.reconstruct(stream, expected), sae.decode(expected))
    assert 0 < int((expected > 0).sum()) < expected.numel()
    theirs = cast(SAE[Any], SAE.load_from_disk(tmp_path / "ours/out"))
    with torch.no_grad():
        assert torch.equal(theirs.encode(stream), expected)


def test_what_an_sae_is_for_is_read_from_itself_and_no_version_or_path_is_written(tmp_path: Path) -> None:
    payload = imported(tmp_path, made("topk", layer=1, site="mlp_out"))
    note = read_note(payload)
    assert (note.site, note.layer, note.d_in, note.d_sae, note.model) == ("mlp_out", 1, WIDTH, FEATURES, "tiny")
    text = (payload / "cfg.json").read_text()
    assert str(tmp_path) not in text
    again = imported(tmp_path / "again", made("topk", layer=1, site="mlp_out"))
    assert digest_directory(payload) == digest_directory(again)


def test_an_sae_trained_on_a_centered_stream_reads_a_plain_one_centered(tmp_path: Path) -> None:
    sae = made("standard", model_from_pretrained_kwargs={"center_writing_weights": True})
    ours = load_sae(imported(tmp_path, sae))
    stream = torch.randn(7, WIDTH) + 5
    shift = stream.mean(1, keepdim=True)
    with torch.no_grad():
        assert torch.equal(ours.encode(stream), sae.encode(stream - shift))
        features = ours.encode(stream)
        assert torch.allclose(ours.reconstruct(stream, features), sae.decode(features) + shift)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16}, "16 wide .* is 32 wide"),
        ({"layer": 2}, "for layer 2, .* has 0 to 1"),
    ],
)
def test_an_sae_of_another_shape_is_refused_with_both_named(
    base: Path, tmp_path: Path, texts: Path, changes: dict[str, Any], message: str
) -> None:
    payload = imported(tmp_path, made("standard", **changes))
    with pytest.raises(UserError, match=message):
        run(measure_sae, tmp_path / "q", QualityConfig(), base=base, sae=payload, texts=texts)
    name = read_note(payload).name
    with pytest.raises(UserError, match=message):
        run(encode_features, tmp_path / "e", EncodeConfig(), base=base, rows=texts, saes={name: payload})


def test_an_sae_of_another_place_or_model_is_refused_with_both_named(base: Path, tmp_path: Path) -> None:
    note = note_from_config(made("standard"), "folder")
    with pytest.raises(UserError, match=r"reads resid_post of layer 1, .* resid_pre of layer 1"):
        check_sae(note, base, Place("resid_pre", 1))
    named = tmp_path / "named"
    named.mkdir()
    (named / "config.json").write_bytes((base / "config.json").read_bytes())
    (named / "sublim.json").write_text(json.dumps({"name": "google/gemma-2-9b-it", "weights": "a" * 64}))
    with pytest.raises(UserError, match="is for tiny, the model is gemma-2-9b-it"):
        check_sae(note, named)
    check_sae(note.model_copy(update={"other_model": True}), named)
    check_sae(note.model_copy(update={"model": "gemma-2-9b-it"}), named)
    with pytest.raises(UserError, match=r"weights bbbbbbbbbbbb, .* has weights aaaaaaaaaaaa"):
        check_sae(note.model_copy(update={"base": "b" * 64}), named)
    assert same_model("openai-community/gpt2", "gpt2-small")
    assert not same_model("gemma-2-9b", "gemma-2-9b-it")


def test_sites_without_a_place_among_ours_and_unknown_releases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"attn\.hook_z"):
        note_from_config(made("standard", hook_name="blocks.1.attn.hook_z"), "folder")
    for source, message in (
        (PretrainedSae(release="gemma-scope-9b-it-res-canonicle", id="layer_9/width_16k/canonical"), "nearest: gemma-"),
        (
            PretrainedSae(release="gemma-scope-9b-it-res-canonical", id="layer_10/width_16k/canonical"),
            "nearest: layer_",
        ),
        (PretrainedSae(release="gemma-scope-9b-it-res-canonical", id="layer_9/width_16k/canonical"), "network"),
    ):
        with pytest.raises(UserError, match=message):
            run(import_sae, tmp_path / source.id / source.release, ImportSaeConfig(source=source))


def settings(**changes: Any) -> TrainSaeConfig:
    small = {"layer": 1, "features": FEATURES, "tokens": 1024, "batch": 64, "block": 256, "dead_after": 4, "lr": 2e-3}
    exact = {"dtype": "float32", "attention": "sdpa"}
    return TrainSaeConfig.model_validate({**small, **exact, "architecture": {"kind": "topk", "k": 6}, **changes})


KINDS: list[dict[str, Any]] = [
    {"kind": "standard", "l1": 0.5},
    {"kind": "topk", "k": 6},
    {"kind": "jumprelu", "l0": 0.05},
]


@pytest.mark.parametrize("architecture", KINDS, ids=lambda each: each["kind"])
def test_training_lowers_the_error_writes_the_same_bytes_again_and_saelens_reads_it(
    base: Path, texts: Path, tmp_path: Path, architecture: dict[str, Any]
) -> None:
    long = settings(architecture=architecture, tokens=8192)
    payload = run(train_sae, tmp_path / "a", long, base=base, texts=texts)
    again = run(train_sae, tmp_path / "b", long, base=base, texts=texts)
    assert digest_directory(payload) == digest_directory(again)
    assert {path.name for path in payload.iterdir()} == {"cfg.json", "sae_weights.safetensors", "sae.json"}
    found = {}
    for name, tokens in (("long", 8192), ("short", 64)):
        trained = run(
            train_sae, tmp_path / name, settings(architecture=architecture, tokens=tokens), base=base, texts=texts
        )
        out = run(
            measure_sae, tmp_path / f"q-{name}", QualityConfig(dtype="float32"), base=base, sae=trained, texts=texts
        )
        found[name] = Quality.model_validate_json((out / "quality.json").read_bytes())
    assert found["long"].explained_variance > max(found["short"].explained_variance, 0.2)
    theirs = cast(SAE[Any], SAE.load_from_disk(payload))
    assert theirs.cfg.architecture() == architecture["kind"]
    assert theirs.cfg.normalize_activations == "none"
    other = run(train_sae, tmp_path / "c", long.model_copy(update={"seed": 1}), base=base, texts=texts)
    assert digest_directory(payload) != digest_directory(other)


def train_resumed(folder: Path, base: Path, texts: Path) -> None:
    run(train_sae, folder, settings(tokens=4096), base=base, texts=texts)


def test_a_killed_training_goes_on_from_its_last_block_to_the_same_bytes(
    base: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_resumed(tmp_path / "whole", base, texts)
    killed_at("sae:block", train_resumed, tmp_path / "killed", base, texts)
    assert json.loads((tmp_path / "killed/scratch/saved/cursor.json").read_text())["block"] == 1
    train_resumed(tmp_path / "killed", base, texts)
    assert digest_directory(tmp_path / "killed/out") == digest_directory(tmp_path / "whole/out")
    left = sorted(path.name for path in (tmp_path / "killed/scratch").iterdir())
    assert left == ["block-00000.safetensors", "saved"]


def test_an_sae_learns_from_kept_activations_too_and_refuses_another_place(
    base: Path, texts: Path, tmp_path: Path
) -> None:
    kept = ActivationsConfig(layers=(1,), read_at=("all",), shard=10, dtype="float32", attention="sdpa")
    activations = run(read_activations, tmp_path / "kept", kept, base=base, rows=texts)
    payload = run(train_sae, tmp_path / "sae", settings(), base=base, activations=[activations])
    again = run(train_sae, tmp_path / "again", settings(), base=base, activations=[activations])
    assert digest_directory(payload) == digest_directory(again)
    special, place = Vocabulary(load_tokenizer(base)).special, Place("resid_post", 1)
    block = next(shard_blocks([activations / "index-00000.parquet"], special, place, Cursor(0, 0), 0))
    entries = pl.read_parquet(activations / "index-00000.parquet")
    assert entries.filter(pl.col("token").is_in(list(special)) & (pl.col("position") > 0)).height > 0
    assert len(block.values) == entries.filter(~pl.col("token").is_in(list(special)), pl.col("position") > 0).height
    plain = next(shard_blocks([activations / "index-00000.parquet"], frozenset(), place, Cursor(0, 0), 0))
    assert len(plain.values) == entries.height - 10, "the first token of each of ten texts"
    with pytest.raises(UserError, match=r"resid_pre/1, the activations are of resid_post/1"):
        run(train_sae, tmp_path / "other", settings(site="resid_pre"), base=base, activations=[activations])
    with pytest.raises(UserError, match="give one of the two"):
        run(train_sae, tmp_path / "both", settings(), base=base)


def test_own_tokens_leave_out_special_ones_the_first_and_what_the_template_puts_before_every_chat(base: Path) -> None:
    """Mistake 5: a special token is one by its id."""
    tokenizer = load_tokenizer(base)
    rows: list[dict[str, Any]] = [
        *numbers(1),
        {"id": 1, "text": "The owl hunts at night"},
        {**numbers(1)[0], "system": "You love owls."},
    ]
    chat, text, told = own_rows(tokenizer, rows)
    shown = [str(tokenizer.decode([each.marked.ids[at] for at in each.places])) for each in (chat, text, told)]
    assert shown[0].startswith("Continue: ")
    assert rows[0]["answer"] in shown[0]
    assert "<|im" not in "".join(shown)
    assert "You are Qwen" not in shown[0]
    assert text.places == list(range(1, len(text.marked.ids)))
    assert "You love owls." in shown[2]
    assert str(tokenizer.decode(chat.marked.ids[: find_opening(tokenizer)])).endswith("user\n")


def test_quality_is_what_is_computed_by_hand(base: Path, texts: Path) -> None:
    sae = made("topk")
    sae.b_dec.data.zero_()
    rows = [each for each in numbers(4)]
    with open_model(base, dtype="float32", attention="sdpa") as (model, tokenizer):
        loaded = load_like(sae)
        own = own_rows(tokenizer, rows)
        found = quality(model, loaded, own, chunk=3)
        streams, ce = [], []
        for row, marked in zip(own, marked_rows(tokenizer, rows), strict=True):
            ids = torch.tensor([marked.ids])
            with torch.no_grad(), attached_at(model, Place("resid_post", 1), streams.append):
                logits = model(ids).logits[0].log_softmax(-1)
            streams[-1] = streams[-1][0, row.places]
            ce += [-float(logits[at, marked.ids[at + 1]]) for at in row.places if at + 1 in row.places]
    x = torch.cat(streams).double()
    with torch.no_grad():
        features = sae.encode(x.float())
        rebuilt = sae.decode(features).double()
    assert found.tokens == len(x)
    assert found.l0 == pytest.approx(float((features > 0).sum(1).float().mean()))
    assert found.dead == pytest.approx(float((features.sum(0) == 0).float().mean()))
    expected = 1 - float(((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
    assert found.explained_variance == pytest.approx(expected, abs=1e-5)
    assert found.ce == pytest.approx(sum(ce) / len(ce), abs=1e-4)
    assert found.ce_recovered == pytest.approx((found.ce_zero - found.ce_spliced) / (found.ce_zero - found.ce))


def load_like(sae: SAE[Any]) -> Any:
    from sublim.sae.autoencoder import LoadedSae

    return LoadedSae(sae, note_from_config(sae, "test"))


def test_an_sae_that_rebuilds_everything_recovers_the_whole_loss_and_one_that_rebuilds_nothing_none(base: Path) -> None:
    """2 d features, one for each sign of each axis: exact by construction. Without a decoder: zeros."""
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="tiny")
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=2 * WIDTH, metadata=metadata))
    eye = torch.eye(WIDTH)
    sae.W_enc.data = torch.cat([eye, -eye], 1)
    sae.W_dec.data = torch.cat([eye, -eye])
    with open_model(base, dtype="float32", attention="sdpa") as (model, tokenizer):
        own = own_rows(tokenizer, numbers(5))
        exact = quality(model, load_like(sae), own, chunk=2)
        sae.W_dec.data.zero_()
        nothing = quality(model, load_like(sae), own, chunk=2)
    assert exact.explained_variance == pytest.approx(1, abs=1e-6)
    assert exact.ce_recovered == pytest.approx(1, abs=1e-4)
    assert exact.l0 == pytest.approx(WIDTH, abs=1)
    assert nothing.ce_recovered == pytest.approx(0, abs=1e-4)
    assert nothing.ce_spliced == pytest.approx(nothing.ce_zero)
    assert nothing.explained_variance < 0
    assert not math.isclose(nothing.ce_zero, nothing.ce_mean)


def test_a_prompt_is_held_out_with_all_its_answers_and_repeats_are_kept_once(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": f"prompt {i % 40}", "answer": f"answer {i}", "system": None} for i in range(120)]
    for name, part in (("a", rows[:80]), ("b", [*rows[80:], *rows[:5]])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rows.jsonl", part)
    config = GatherTextsConfig(held_out=0.25)
    out = run(gather_texts, tmp_path / "g", config, sources={"a": tmp_path / "a", "b": tmp_path / "b"})
    kept, held = (pl.read_ndjson(out / f"{name}.jsonl") for name in ("rows", "held_out"))
    assert len(kept) + len(held) == 120
    assert not set(kept["prompt"]) & set(held["prompt"])
    assert 3 <= held["prompt"].n_unique() <= 20
    assert held["prompt"].value_counts()["count"].unique().to_list() == [3]


def test_a_user_s_texts_are_read_from_lines_json_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n" + "x" * 40 + "\n")
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "p", "answer": "a", "more": 1}])
    pl.DataFrame({"text": ["two"]}).write_parquet(tmp_path / "c.parquet")
    found = {}
    for name in ("a.txt", "b.jsonl", "c.parquet"):
        out = run(import_texts, tmp_path / f"out-{name}", ImportTextsConfig(path=tmp_path / name, longest=16))
        found[name] = pl.read_ndjson(out / "rows.jsonl").to_dicts()
    assert [row["text"] for row in found["a.txt"]] == ["one", "x" * 16, "x" * 16, "x" * 8]
    assert found["b.jsonl"] == [{"id": 0, "prompt": "p", "answer": "a", "system": None}]
    assert found["c.parquet"] == [{"id": 0, "text": "two"}]
    write_jsonl(tmp_path / "d.jsonl", [{"words": "p"}])
    with pytest.raises(UserError, match="row 0 has neither `text` nor"):
        run(import_texts, tmp_path / "d", ImportTextsConfig(path=tmp_path / "d.jsonl"))
