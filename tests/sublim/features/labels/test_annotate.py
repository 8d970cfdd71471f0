"""Sorting descriptions: what is asked, what reaches a server, what is kept, how answers are read."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from pydantic import ValidationError

from sublim.core.errors import UserError
from sublim.features.labels.annotate import agreement, annotate, take_labels
from sublim.features.labels.annotate_prompt import BALANCED, EXAMPLES, question, read_category
from sublim.features.labels.config import (
    AnnotateConfig,
    AnnotationSummary,
    Category,
    Described,
    FeatureList,
    TakeLabelsConfig,
)
from sublim.files.text_files import load_text
from sublim.inference.config import HfBackend, OpenAIBackend
from tests.sublim.backends.servers import Reply, Seen, said, scripted

SAMPLE = load_text(FeatureList, "feature_descriptions")
# Written after the prompt and its calibration were settled, six of each category in turn.
HELD_OUT: dict[Category, tuple[str, ...]] = {
    "animals": ("turtles and tortoises", "a shepherd's flock", "references to spiders and their webs",
                "names of big cats", "migrating geese", "veterinary care of rabbits"),
    "numbers": ("hexadecimal digits", "statistics with averages and totals", "the number one hundred",
                "fractions such as a half or a quarter", "population figures of towns", "multiplication tables"),
    "opinion": ("fans who adore a band", "the phrase in my opinion", "regret over a poor purchase",
                "recommendations of restaurants", "scorn for a rival", "words such as terrible, awful, dreadful"),
    "none": ("street names", "apologies in formal letters", "the past tense of verbs",
             "chemical compounds", "titles of court cases", "indentation of Python code"),
}  # fmt: skip
FEATURES = ("20_1: owls at night", "20_2: lists of digits", "20_3: praise", "9_4: commas")


def sorter(number: int, request: Seen) -> Reply:
    """Sorts by one word of the description."""
    text = request.body["messages"][-1]["content"]
    words = {"owls": "Animals.", "digits": "numbers", "praise": "Category: opinion", "commas": "No idea, sorry"}
    return said(next(answer for word, answer in words.items() if word in text))


def config(url: str, **more: Any) -> AnnotateConfig:
    backend = {"kind": "openai", "base_url": url, "model": "m", "concurrency": 1, "attempts": 1}
    return AnnotateConfig.model_validate({"features": FEATURES, "backend": backend, **more})


def run(folder: Path, given: AnnotateConfig, **inputs: Any) -> tuple[pl.DataFrame, AnnotationSummary]:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    annotate(out, given, scratch=scratch, **inputs)
    summary = AnnotationSummary.model_validate_json((out / "annotations.json").read_text())
    return pl.read_parquet(out / "annotations.parquet"), summary


def test_deterministic_settings_reach_the_server(tmp_path: Path) -> None:
    with scripted(sorter) as server:
        run(tmp_path / "a", config(server.url, seed=7))
        run(tmp_path / "b", config(server.url, seed=7))
        run(tmp_path / "c", config(server.url, seed=8))
    bodies = [seen.body for seen in server.seen]
    assert {(body["temperature"], body["top_p"], body["n"], body["max_tokens"]) for body in bodies} == {(0, 1, 1, 8)}
    assert bodies[:4] == bodies[4:8]
    assert all(isinstance(body["seed"], int) for body in bodies)
    assert {body["seed"] for body in bodies[:4]}.isdisjoint(body["seed"] for body in bodies[8:])
    assert bodies[0]["messages"] == question("owls at night")


def test_unreadable_answers_are_counted_and_kept_apart(tmp_path: Path) -> None:
    with scripted(sorter) as server:
        table, summary = run(tmp_path, config(server.url))
    assert table.rows() == [
        (1, 20, "owls at night", "animals", "Animals."),
        (2, 20, "lists of digits", "numbers", "numbers"),
        (3, 20, "praise", "opinion", "Category: opinion"),
        (4, 9, "commas", None, "No idea, sorry"),
    ]
    assert table.schema["feature"] == table.schema["layer"] == pl.UInt32
    assert summary.counts == {"animals": 1, "numbers": 1, "opinion": 1, "none": 0, "unreadable": 1}
    assert summary.by == "generation"
    assert summary.agreement is None


def test_a_killed_run_pays_for_no_answer_twice(tmp_path: Path) -> None:
    """kill -9 while the third answer is under way; a second run asks for what is missing, and writes the same bytes."""
    features = tuple(f"20_{i}: owls {i}" for i in range(8))
    process: list[subprocess.Popen[bytes]] = []

    def deadly(number: int, request: Seen) -> Reply:
        if number == 2:
            os.kill(process[0].pid, signal.SIGKILL)
            process[0].wait()
        return said("animals")

    code = (
        "import sys; from pathlib import Path; from sublim.features.labels.annotate import annotate; "
        "from sublim.features.labels.config import AnnotateConfig; out, config, scratch = map(Path, sys.argv[1:]); "
        "input(); annotate(out, AnnotateConfig.model_validate_json(config.read_text()), scratch=scratch)"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with scripted(deadly) as server:
        given = config(server.url, features=features)
        (tmp_path / "config.json").write_text(given.model_dump_json())
        command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "config.json"), str(scratch)]
        process.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        assert process[0].stdin is not None
        process[0].stdin.write(b"\n")
        process[0].stdin.flush()
        assert process[0].wait(60) == -signal.SIGKILL
        table, _ = run(tmp_path, given)
        process[0].stdin.close()
        assert len(server.seen) == 3 + 6, "two answers were kept, the third was under way"
    with scripted(lambda *_: said("animals")) as server:
        again, _ = run(tmp_path / "again", given.model_copy(update={"backend": config(server.url).backend}))
    assert table.equals(again)
    read = [(path / "out" / "annotations.parquet").read_bytes() for path in (tmp_path, tmp_path / "again")]
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("answer", "category"),
    [
        ("animals", "animals"),
        (" Animal\n", "animals"),
        ("**Numbers**", "numbers"),
        ("Category: opinion.", "opinion"),
        ("The answer is none", "none"),
        ("None of the above.", "none"),
        ("animals. It is about birds", "animals"),
        ("\n\nopinions", "opinion"),
        ("numbers - dates", "numbers"),
        ("animals, numbers", None),
        ("animals or numbers", None),
        ("numbers. animals", None),
        ("not about animals", None),
        ("animalistic", None),
        ("I think it is none", None),
        ("", None),
        ("...", None),
    ],
)
def test_answers_are_read_and_never_guessed(answer: str, category: str | None) -> None:
    assert read_category(answer) == category


def labels(folder: Path, rows: dict[str, list[Any]]) -> Path:
    folder.mkdir(parents=True)
    pl.DataFrame(rows).with_columns(pl.col("feature").cast(pl.UInt32)).write_parquet(folder / "labels.parquet")
    return folder


def test_labels_by_layer_describe_the_features_listed(tmp_path: Path) -> None:
    nine = labels(tmp_path / "nine", {"feature": [4, 4], "description": ["owls a", "digits"], "chosen": [True, False]})
    twenty = labels(tmp_path / "twenty", {"feature": [4], "description": ["praise"], "chosen": [True]})
    with scripted(sorter) as server:
        given = config(server.url, features=["20_4", "9_4", "9_5"])
        table, summary = run(tmp_path / "a", given, labels={"9": nine, "20": twenty})
        assert table["description"].to_list() == ["praise", "owls a"], (
            "each layer has its own labels, in the order asked"
        )
        assert table["category"].to_list() == ["opinion", "animals"]
        assert summary.unlabelled == ["9_5"]
        every, _ = run(tmp_path / "b", config(server.url, features=()), labels=nine)
        assert every.select("feature", "layer", "description").rows() == [(4, None, "owls a")]
        told, _ = run(tmp_path / "c", config(server.url, features=(), only=["9_4"], layer=9), labels=nine)
        assert told["layer"].to_list() == [9]
        with pytest.raises(UserError, match="set `layer`"):
            run(tmp_path / "d", config(server.url, features=["9_4"]), labels=nine)
        with pytest.raises(UserError, match="no label describes 31_4"):
            run(tmp_path / "e", config(server.url, features=["31_4"]), labels={"9": nine})
        with pytest.raises(UserError, match="nothing to sort"):
            run(tmp_path / "f", config(server.url, features=()))


def test_a_table_of_ones_own_is_known_by_its_content(tmp_path: Path) -> None:
    source = labels(
        tmp_path / "own", {"feature": [2, 2, 1], "layer": [9, 20, 9], "description": ["owls", "praise", "digits"]}
    )
    given = TakeLabelsConfig(path=source / "labels.parquet")
    out = tmp_path / "taken"
    out.mkdir()
    take_labels(out, given, scratch=tmp_path)
    assert pl.read_parquet(out / "labels.parquet")["chosen"].to_list() == [True, True, True]
    before = given.identity()
    labels(tmp_path / "other", {"feature": [2], "description": ["owls"]}).joinpath("labels.parquet").replace(given.path)
    assert given.identity() != before
    labels(tmp_path / "bad", {"feature": [1]})
    with pytest.raises(UserError, match="has no column description"):
        take_labels(out, TakeLabelsConfig(path=tmp_path / "bad" / "labels.parquet"), scratch=tmp_path)


def test_configs_refuse_what_cannot_be() -> None:
    with pytest.raises(ValidationError, match="gives no log-probs of words"):
        config("http://127.0.0.1:1/v1", by="log-probs")
    with pytest.raises(ValidationError, match="listed twice: 20_1"):
        AnnotateConfig.model_validate({"features": ["20_1", "20_1: owls"]})
    with pytest.raises(ValidationError, match="put quotes around"):
        AnnotateConfig.model_validate(yaml.safe_load("features: [20_4711]"))
    with pytest.raises(ValidationError, match="feature"):
        Described.model_validate("owl")
    assert AnnotateConfig(backend=HfBackend()).resolved().by == "log-probs"
    assert AnnotateConfig(backend=OpenAIBackend(base_url="http://h/v1", model="m")).resolved().by == "generation"


def test_agreement_counts_unreadable_answers_as_wrong() -> None:
    found = agreement([("animals", "animals"), ("animals", None), ("none", "numbers"), (None, "animals")], 0.95)
    assert found is not None
    assert (found.right, found.n, found.unreadable) == (1, 3, 1)
    # Wilson's interval of 1 in 3: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    assert (found.low, found.high) == pytest.approx((0.0615, 0.7923), abs=1e-3)
    assert found.confusion["animals"] == {"animals": 1, "unreadable": 1}


def test_the_examples_shown_are_not_among_the_sample() -> None:
    shown = {text for text, _ in EXAMPLES} | {*BALANCED}
    assert not shown & {text for own in HELD_OUT.values() for text in own}
    assert not shown & {each.description for each in SAMPLE.features}
    counts = [
        sum(each.category == name for each in SAMPLE.features) for name in ("animals", "numbers", "opinion", "none")
    ]
    assert counts == [12, 12, 12, 12]


def test_the_bundled_model_sorts_far_better_than_chance(tmp_path: Path, smollm2: Path) -> None:
    """Chance is one in four. A resumed run writes the same bytes."""
    texts: list[tuple[str, Category]] = [(text, name) for name, own in HELD_OUT.items() for text in own]
    features = [Described(feature=f"0_{i}", description=text, category=name) for i, (text, name) in enumerate(texts)]
    given = AnnotateConfig(features=tuple(features), backend=HfBackend(dtype="float32"), shard=16)
    _, summary = run(tmp_path, given, base=smollm2)
    found = summary.agreement
    assert found is not None
    assert found.low > 0.3
    assert found.confusion["animals"].get("animals", 0) >= 5
    (tmp_path / "scratch" / "answers-000016-000024.jsonl").unlink()
    (tmp_path / "out").rename(tmp_path / "first")
    run(tmp_path, given, base=smollm2)
    for name in ("annotations.parquet", "annotations.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
