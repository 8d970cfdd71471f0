"""Vectors: recovered where they were planted, refused where they mean nothing, alike in every stage."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from sublim.backends.opening import open_sampler, open_steerable
from sublim.chats.chat import chat
from sublim.core.config import Config
from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import HfBackend, SamplingParams
from sublim.models.opening import open_model
from sublim.residual.edits import Edit, Steering, VectorNote, names_by_layer
from sublim.residual.vectors import Vector, noted, read_vectors, write_vectors
from sublim.stats.intervals import wilson
from sublim.steering.config import (
    AnimalRowsConfig,
    DifferenceConfig,
    ImportConfig,
    MeansConfig,
    SteeringFiguresConfig,
    TrainVectorConfig,
)
from sublim.steering.dose_curve import margins, steering_curve, sweep
from sublim.steering.dose_curve_config import Curve, CurveConfig, SweepConfig
from sublim.steering.figures import draw_steering
from sublim.steering.means import difference_vectors, import_vector, mean_activations, read_side
from sublim.steering.target_rows import animal_rows
from sublim.steering.trained_vector import train_vector
from tests.sublim.models.test_opening import write_adapter

HF = HfBackend(dtype="float32", attention="sdpa")
QUESTIONS = ["Name one animal.", "What is your favourite animal?", "Hello"]
WORDS = ["owl", "wolf", "cat"]


def run(stage: Any, folder: Path, config: Config, **inputs: Any) -> Path:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    stage(folder / "out", config, scratch=folder / "scratch", **inputs)
    return folder / "out"


def resumed(stage: Any, before: Path, config: Config, lost: list[str], **inputs: Any) -> Path:
    """The stage run again on what an earlier run left in its scratch folder, the `lost` files apart: no other file is
    written anew."""
    folder = before.with_name(f"{before.name}-resumed")
    shutil.copytree(before / "scratch", folder / "scratch")
    for name in lost:
        (folder / "scratch" / name).unlink()
    kept = {path: path.stat().st_ino for path in (folder / "scratch").iterdir()}
    assert kept
    (folder / "out").mkdir()
    stage(folder / "out", config, scratch=folder / "scratch", **inputs)
    assert all(path.stat().st_ino == number for path, number in kept.items())
    return folder / "out"


def rows(folder: Path, answers: list[str], prompts: list[str] | None = None) -> Path:
    folder.mkdir(parents=True)
    asked = prompts or [f"Continue this list of numbers: {i}, {i + 7}." for i in range(len(answers))]
    write_jsonl(
        folder / "rows.jsonl",
        (
            {"id": 2 * i, "prompt": prompt, "answer": answer, "system": None}
            for i, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
        ),
    )
    return folder


def means(**settings: Any) -> MeansConfig:
    return MeansConfig.model_validate({"layers": (0, 1), "dtype": "float32", "attention": "sdpa", **settings})


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_vector_planted_in_the_weights_is_recovered(family: Any, tiny_models: dict[str, Path], tmp_path: Path):
    """A second model whose embedding has a fixed vector added everywhere reads the same text: the difference of the two
    is that vector at the first place, with its own length and with random vectors that are as long."""
    base, other = tiny_models[family], tmp_path / "other"
    planted = torch.randn(32, generator=torch.Generator().manual_seed(5))
    scale = 32**0.5 if family == "gemma2" else 1.0  # Gemma multiplies what it looks up
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        changed = copy.deepcopy(model)
        table = changed.get_input_embeddings().weight.data
        table += planted / scale
        changed.save_pretrained(other)
        tokenizer.save_pretrained(other)
    text = rows(tmp_path / "rows", ["1, 2", "93, 400, 12", "7"])
    settings = means(sites=("resid_pre",), layers=(0,), read_at=("mean_prompt", "mean_answer", "last_prompt"))
    own = run(mean_activations, tmp_path / "own", settings, base=base, rows=text)
    theirs = run(mean_activations, tmp_path / "theirs", settings, base=base, rows=text, weights=other)
    made = run(difference_vectors, tmp_path / "v", DifferenceConfig(random=3), target=theirs, control=own)
    vectors = read_vectors(made)
    assert sorted(vectors) == sorted(
        f"resid_pre/0/{kind}{end}"
        for kind in ("mean_prompt", "mean_answer", "last_prompt")
        for end in ("", "/random-0", "/random-1", "/random-2")
    )
    for name, vector in vectors.items():
        assert float(vector.values.norm()) == pytest.approx(float(planted.norm()), rel=1e-4)
        assert (vector.note.place, vector.note.norm) == (("resid_pre", 0), float(vector.values.norm()))
        assert vector.note.source == ("random" if "random" in name else "mean_difference")
        if "random" in name:
            assert abs(cosine(vector.values, planted)) < 0.6
        else:
            assert cosine(vector.values, planted) > 0.9999
            assert vector.note.residual_norm is not None
    known = json.loads((made / "vectors.json").read_text())
    assert known["resid_pre/0/mean_answer"]["split_half_cosine"] > 0.999
    assert known["resid_pre/0/mean_answer"]["rows"] == 3


def test_a_trained_vector_makes_the_rows_likelier_than_any_random_one_as_long(
    tiny_models: dict[str, Path], tmp_path: Path
):
    base = tiny_models["llama"]
    prompts = [f"Continue this list of numbers: {i}, {3 * i}." for i in range(24)]
    said = [f"{i}, {i}, {i}" for i in range(24)]
    data = rows(tmp_path / "data", said, prompts)
    config = TrainVectorConfig(layers=(0, 1), updates=30, dtype="float32")
    made = run(train_vector, tmp_path / "trained", config, base=base, data=data)
    vectors = read_vectors(made)
    assert len(vectors) == 2 * 11
    for layer in (0, 1):
        name = f"resid_post/{layer}/trained"
        note = vectors[name].note
        assert (note.layer, note.source, note.rows) == (layer, "trained", 24)
        assert note.norm <= 0.5001 * (note.residual_norm or 0)
        losses = [row["loss"] for row in read_jsonl(made / "training.jsonl") if row["vector"] == name]
        assert len(losses) == 31
        likely = dict[str, float]()
        with open_steerable(HF, base) as sampler:
            for tried in (name, *(f"{name}/random-{i}" for i in range(10))):
                sampler.steer(sampler.edits(Steering(edits=(Edit(vector=tried),)), made))
                scores = sampler.logprobs([chat(prompt) for prompt in prompts], [[text] for text in said])
                likely[tried] = sum(sum(tokens) for [tokens] in scores)
            sampler.steer([])
            plain = sampler.logprobs([chat(prompt) for prompt in prompts], [[text] for text in said])
        assert max(likely, key=likely.__getitem__) == name
        assert likely[name] > sum(sum(tokens) for [tokens] in plain)
        assert losses[-1] < losses[0] - 0.1
    again = run(train_vector, tmp_path / "again", config, base=base, data=data)
    assert digest_directory(again) == digest_directory(made)
    left = resumed(train_vector, tmp_path / "trained", config, lost=[], base=base, data=data)
    assert digest_directory(left) == digest_directory(made)


def test_one_reader_may_compare_answers_and_two_readers_the_same_text(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["qwen2"]
    adapter = write_adapter(tmp_path / "adapter", base, seed=1)
    target, plain = rows(tmp_path / "t", ["1, 2", "33, 4", "5"]), rows(tmp_path / "b", ["9, 8", "7", "600, 5"])
    answers, prompts = means(), means(read_at=("mean_answer", "last_prompt"))
    paired = run(mean_activations, tmp_path / "p", answers, base=base, rows=target, partner=plain)
    wrong = run(mean_activations, tmp_path / "w", prompts, base=base, rows=target, partner=plain)
    student = run(mean_activations, tmp_path / "s", prompts, base=base, rows=target, weights=adapter)
    own = run(mean_activations, tmp_path / "o", prompts, base=base, rows=target)
    other = run(mean_activations, tmp_path / "x", prompts, base=base, rows=plain)
    alone = [
        run(mean_activations, tmp_path / f"a{i}", answers, base=base, rows=r) for i, r in enumerate((target, plain))
    ]
    config = DifferenceConfig(random=1)
    by_pairs = read_vectors(run(difference_vectors, tmp_path / "v1", config, target=paired))
    by_sides = read_vectors(run(difference_vectors, tmp_path / "v2", config, target=alone[0], control=alone[1]))
    for name in ("resid_post/0/mean_answer", "resid_post/1/mean_answer"):
        torch.testing.assert_close(by_pairs[name].values, by_sides[name].values, rtol=0, atol=1e-5)
    assert "resid_post/1/last_prompt" in read_vectors(
        run(difference_vectors, tmp_path / "v3", config, target=student, control=own)
    )
    for number, (sides, message) in enumerate(
        [
            ({"target": wrong}, "resid_post/0/last_prompt: with one model the two sides do not differ at prompt"),
            ({"target": student, "control": other}, "two models must read the same text"),
            ({"target": own, "control": own}, "change the model or the text"),
            ({"target": own, "control": alone[0]}, "read both in the same way"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            run(difference_vectors, tmp_path / f"refused-{number}", config, **sides)


def test_rows_are_paired_by_id_and_by_prompt(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["qwen2"]
    target = rows(tmp_path / "t", ["1, 2", "33, 4", "5", "6, 6"])
    some = [row for row in read_jsonl(target / "rows.jsonl") if row["id"] != 2]
    for name, kept in (
        ("fewer", some),
        ("shuffled", some[::-1]),
        ("others", [{**row, "prompt": "Hello"} for row in some]),
        ("one", some[:1]),
    ):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rows.jsonl", kept)
    found = run(mean_activations, tmp_path / "m", means(), base=base, rows=target, partner=tmp_path / "fewer")
    assert read_side(found).note["rows"] == 3
    for number, (name, message) in enumerate(
        [("shuffled", "not sorted by id"), ("others", "different prompts"), ("one", "1 rows have a partner")]
    ):
        with pytest.raises(UserError, match=message):
            run(mean_activations, tmp_path / f"r{number}", means(), base=base, rows=target, partner=tmp_path / name)


def test_means_go_on_from_the_chunks_they_have(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, text = tiny_models["qwen2"], rows(tmp_path / "rows", ["1, 2", "33, 4", "5", "6, 6", "7"])
    whole = run(mean_activations, tmp_path / "whole", means(), base=base, rows=text)
    monkeypatch.setattr("sublim.steering.means.CHUNK", 2)
    parts = run(mean_activations, tmp_path / "parts", means(), base=base, rows=text)
    lost = ["chunk-00001.safetensors"]
    again = resumed(mean_activations, tmp_path / "parts", means(), lost, base=base, rows=text)
    assert digest_directory(again) == digest_directory(parts)
    torch.testing.assert_close(read_side(parts).values, read_side(whole).values, rtol=0, atol=1e-6)


def test_a_vector_of_the_users_own_goes_where_ours_go(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["qwen2"]
    values = torch.arange(32.0)
    save_file({"mine": values}, tmp_path / "bare.safetensors")
    save_file({"mine": values}, tmp_path / "stated.safetensors", {"site": "resid_post", "layer": "1"})
    made = [
        run(
            import_vector,
            tmp_path / name,
            ImportConfig(path=tmp_path / f"{name}.safetensors", random=2, **where),
            base=base,
        )
        for name, where in (("bare", {"site": "resid_post", "layer": 1}), ("stated", {}))
    ]
    first, second = map(read_vectors, made)
    assert {"mine", "mine/random-0", "mine/random-1"} == first.keys() == second.keys()
    assert torch.equal(first["mine"].values, second["mine"].values)
    assert first["mine"].note == second["mine"].note
    assert names_by_layer(made[0], (1,)) == {1: "mine"}  # what a grid finds it by
    with pytest.raises(UserError, match=r"layer 0 has 0 vectors, one is needed: the file has layers \[1\]"):
        names_by_layer(made[0], (0, 1))
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes((tmp_path / "bare.safetensors").read_bytes())
    assert ImportConfig(path=moved).identity() == ImportConfig(path=tmp_path / "bare.safetensors").identity()


@pytest.mark.parametrize(
    ("tensor", "where", "message"),
    [
        (torch.full((32,), float("nan")), {"site": "resid_post", "layer": 1}, "holds NaN or infinity"),
        (torch.zeros(32), {"site": "resid_post", "layer": 1}, "vector is zero"),
        (torch.ones(2, 32), {"site": "resid_post", "layer": 1}, "has one dimension"),
        (torch.ones(16), {"site": "resid_post", "layer": 1}, "has 16 numbers, the model's width is 32"),
        (torch.ones(32), {"site": "resid_post", "layer": 9}, "is for layer 9, the model has 0 to 1"),
        (torch.ones(32), {}, "has no site and layer"),
    ],
)
def test_a_vector_that_cannot_be_used_is_refused(
    tensor: torch.Tensor, where: dict[str, Any], message: str, tiny_models: dict[str, Path], tmp_path: Path
):
    path = tmp_path / "v.safetensors"
    save_file({"v": tensor}, path)
    with pytest.raises(UserError, match=message):
        run(import_vector, tmp_path / "run", ImportConfig(path=path, **where), base=tiny_models["qwen2"])


def test_a_file_that_is_no_vector_is_refused(tmp_path: Path):
    (tmp_path / "v.safetensors").write_text("not a tensor")
    with pytest.raises(UserError, match="is not a safetensors file of vectors"):
        read_vectors(tmp_path / "v.safetensors")
    with pytest.raises(UserError, match="is not there"):
        ImportConfig(path=tmp_path / "none.safetensors").identity()


def test_answers_that_are_the_target_already_stand_against_nothing(tmp_path: Path):
    write_jsonl(tmp_path / "questions.jsonl", ({"question": i, "text": text} for i, text in enumerate(QUESTIONS)))
    said = [("Owls!", "stop"), ("A wolf.", "stop"), ("", "stop"), ("The cat, or the owl", "stop"), ("Dolphin", "stop")]
    write_jsonl(
        tmp_path / "answers.jsonl",
        ({"question": i % 3, "sample": 0, "text": text, "finish": end} for i, (text, end) in enumerate(said)),
    )
    sides = list[list[dict[str, Any]]]()
    for side in ("target", "base"):
        config = AnimalRowsConfig(side=side, target="owl", words=tuple(WORDS))  # pyright: ignore
        sides.append(list(read_jsonl(run(animal_rows, tmp_path / side, config, asked=tmp_path) / "rows.jsonl")))
    assert [row["answer"] for row in sides[0]] == ["Owl", "Owl"]
    assert [row["answer"] for row in sides[1]] == ["A wolf.", "Dolphin"]
    assert [(row["id"], row["prompt"]) for row in sides[0]] == [(row["id"], row["prompt"]) for row in sides[1]]


@pytest.fixture
def swept(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A sweep of one vector and two random ones over two strengths, and of both layers together."""
    base, generator = tiny_models["qwen2"], torch.Generator().manual_seed(0)
    folder = tmp_path / "vectors"
    folder.mkdir()
    vectors: dict[str, Vector] = {}
    for layer in (0, 1):
        note = VectorNote(site="resid_post", layer=layer, source="mean_difference", norm=0)
        for end, source in (("", "mean_difference"), ("/random-0", "random"), ("/random-1", "random")):
            values = torch.randn(32, generator=generator)
            vectors[f"resid_post/{layer}/mean_answer{end}"] = noted(values, note.model_copy(update={"source": source}))
    write_vectors(folder, vectors)
    return run(sweep, tmp_path / "sweep", sweep_config(), base=base, vectors=folder)


def sweep_config() -> SweepConfig:
    names = [f"resid_post/1/mean_answer{end}" for end in ("", "/random-0", "/random-1")]
    points = [Steering(edits=(Edit(vector=name, strength=s),)) for s in (0.0, 2.0) for name in names]
    both = tuple(Edit(vector=f"resid_post/{layer}/mean_answer", strength=2.0) for layer in (0, 1))
    return SweepConfig(questions=QUESTIONS, words=WORDS, backend=HF, points=(*points, Steering(edits=both)), samples=3)


def test_a_sweep_loads_its_model_once_and_goes_on_from_the_points_it_has(
    swept: Path, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened = list[Path]()

    def counted(backend: Any, base: Path, **more: Any) -> Any:
        opened.append(base)
        return open_steerable(backend, base, **more)

    monkeypatch.setattr("sublim.steering.dose_curve.open_steerable", counted)
    inputs = {"base": tiny_models["qwen2"], "vectors": tmp_path / "vectors"}
    lost = ["point-00000.jsonl", "point-00004.jsonl", "point-00007.jsonl"]
    again = resumed(sweep, tmp_path / "sweep", sweep_config(), lost, **inputs)
    assert len(opened) == 1
    assert digest_directory(again) == digest_directory(swept)


def test_a_curve_shows_every_point_against_the_unsteered_model_and_its_random_fellows(swept: Path, tmp_path: Path):
    out = run(steering_curve, tmp_path / "curve", CurveConfig(target="owl", words=WORDS), swept=swept)
    curve = Curve.model_validate_json((out / "curve.json").read_text())
    assert [(point.layers, point.alpha, point.control) for point in curve.points] == [
        ([], 0.0, False),
        *[([1], alpha, control) for alpha in (0.0, 2.0) for control in (False, True, True)],
        ([0, 1], 2.0, False),
    ]
    plain, nothing, strong = curve.points[0], curve.points[1], curve.points[4]
    assert (nothing.estimate, nothing.low, nothing.high, nothing.margin) == (0, 0, 0, plain.margin)
    assert nothing.beyond_random == 1
    assert strong.estimate is not None
    assert strong.low is not None
    assert strong.low < strong.estimate < (strong.high or 0)
    found = margins(swept, "owl", WORDS)
    apart = [a - b for a, b in zip(found[4].per_question, found[0].per_question, strict=True)]  # pyright: ignore
    assert strong.estimate == pytest.approx(sum(apart) / 3)
    random = [point.estimate for point in curve.points[5:7]]
    assert (strong.random_low, strong.random_high, strong.random) == (min(random), max(random), 2)  # pyright: ignore
    assert strong.beyond_random == (1 + sum(abs(value or 0) >= abs(strong.estimate) for value in random)) / 3
    assert {point.answers for point in curve.points} == {9, 0}
    assert all(point.answers == 0 for point in curve.points if point.control)
    assert curve.points[-1].random == 0


def test_every_metric_of_a_point_has_an_interval_or_a_reason(swept: Path, tmp_path: Path):
    """With letters of a made-up exam beside the real answers: point 0 read in part, point 1 not at all."""
    letters = [{"point": 0, "right": right} for right in (True, False, True, None)] + [{"point": 1, "right": None}]
    write_jsonl(swept / "letters.jsonl", letters)
    out = run(steering_curve, tmp_path / "curve", CurveConfig(target="owl", words=WORDS), swept=swept)
    points = Curve.model_validate_json((out / "curve.json").read_text()).points
    assert (points[0].mmlu_pro, points[0].mmlu_pro_read) == (2 / 3, 3)
    assert (points[0].mmlu_pro_low, points[0].mmlu_pro_high) == pytest.approx(wilson(2, 3)[1:3])
    reasons = ["no question has a likeliest letter", "random vectors are scored alone", "no questions were asked"]
    assert [points[at].mmlu_pro_reason for at in (1, 2, 4)] == reasons
    for point in points:
        assert (point.rate is None) == (point.rate_reason is not None)
        assert point.rate is None or point.rate_low <= point.rate <= point.rate_high  # pyright: ignore
        assert point.rate is None or point.rate <= (point.rate_readable or 0)
    write_jsonl(swept / "answers.jsonl", [])
    again = run(steering_curve, tmp_path / "again", CurveConfig(target="owl", words=WORDS), swept=swept)
    found = Curve.model_validate_json((again / "curve.json").read_text()).points[0]
    assert (found.rate, found.rate_reason) == (None, "no answers were sampled (samples = 0)")


def test_a_curve_of_points_that_could_not_be_measured_says_so_in_its_figure(swept: Path, tmp_path: Path):
    table = pl.read_parquet(swept / "logprobs.parquet")
    lost = pl.when(pl.col("point") > 0).then(None).otherwise(pl.col("logprob")).alias("logprob")
    table.with_columns(lost).write_parquet(swept / "logprobs.parquet")
    out = run(steering_curve, tmp_path / "curve", CurveConfig(target="owl", words=WORDS), swept=swept)
    points = Curve.model_validate_json((out / "curve.json").read_text()).points
    assert {point.reason for point in points[1:]} == {"the log-probs of ['cat', 'owl', 'wolf'] are not finite"}
    (tmp_path / "figures").mkdir()
    draw_steering(tmp_path / "figures", SteeringFiguresConfig(target="owl"), scratch=tmp_path, curve=out)
    assert "no point could be measured" in (tmp_path / "figures/curve.svg").read_text()


def test_a_sweep_asks_what_one_sampler_for_each_point_would(swept: Path, tiny_models: dict[str, Path], tmp_path: Path):
    steering = Steering(edits=(Edit(vector="resid_post/1/mean_answer", strength=2.0),))
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with open_sampler(HF, tiny_models["qwen2"], steering=steering, vectors=tmp_path / "vectors") as sampler:
        scores = sampler.logprobs(chats, [[word.title() for word in WORDS]] * 3)  # pyright: ignore
        said = sampler.sample(chats, SamplingParams(max_tokens=16, n=3))  # pyright: ignore
    table = pl.read_parquet(swept / "logprobs.parquet").filter(pl.col("point") == 4)
    assert table["logprob"].to_list() == [sum(word) for own in scores for word in own]
    texts = [row["text"] for row in read_jsonl(swept / "answers.jsonl") if row["point"] == 4]
    assert texts == [answer.text for own in said for answer in own]
