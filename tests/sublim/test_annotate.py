"""Annotation: what reaches the model, what is read of its answers, what a kill leaves."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sublim.annotate import annotate, likeliest, question, read_answer, wanted
from sublim.annotate_config import AnnotateConfig, DescribedFeature
from sublim.digest import digest_directory
from sublim.errors import UserError
from sublim.neuronpedia import SCHEMA
from tests.sublim.inference.servers import Reply, Seen, said, scripted

TEXTS = ["wild cats and their prey", "three-digit numbers", "praise of a film", "names of ministers"]
KINDS = {"animals", "numbers", "opinion", "none"}


def described(*texts: str) -> list[dict[str, Any]]:
    return [{"feature": n, "layer": 9, "description": text} for n, text in enumerate(texts)]


def served(url: str, **settings: Any) -> AnnotateConfig:
    backend = {"kind": "openai", "base_url": url, "model": "m", "concurrency": 1}
    return AnnotateConfig.model_validate({"features": described(*TEXTS), "backend": backend, **settings})


def run(out: Path, config: AnnotateConfig, **inputs: Any) -> tuple[dict[str, Any], pl.DataFrame]:
    out.mkdir()
    scratch = out.with_name(f"{out.name}-scratch")
    scratch.mkdir(exist_ok=True)
    return annotate(out, config, scratch=scratch, **inputs), pl.read_parquet(out / "annotations.parquet")


def by_text(number: int, request: Seen) -> Reply:
    asked = request.body["messages"][-1]["content"]
    answers = {"cats": "Animals.", "digit": "numbers", "film": "I think it is opinion", "ministers": "None or animals"}
    return said(next(answer for word, answer in answers.items() if word in asked))


def test_what_reaches_the_server_is_deterministic_and_whole(tmp_path: Path) -> None:
    with scripted(by_text) as server:
        notes, table = run(tmp_path / "a", served(server.url))
        assert len(server.seen) == 4
        for number, request in enumerate(server.seen):
            body = request.body
            assert (body["temperature"], body["top_p"], body["n"], body["max_tokens"]) == (0.0, 1.0, 1, 8)
            assert isinstance(body["seed"], int)
            assert body["messages"][-1] == {"role": "user", "content": f"Description: {TEXTS[number]}\nKind:"}
            assert all(f"- {kind}: " in body["messages"][0]["content"] for kind in KINDS)
        seeds = [request.body["seed"] for request in server.seen]
        run(tmp_path / "b", served(server.url))
        assert [request.body["seed"] for request in server.seen[4:]] == seeds
    assert digest_directory(tmp_path / "a") == digest_directory(tmp_path / "b")
    assert table["category"].to_list() == ["animals", "numbers", None, None]
    assert table["answer"].to_list()[2:] == ["I think it is opinion", "None or animals"]
    assert notes["unreadable"] == 2
    assert notes["counts"] == {"animals": 1, "numbers": 1, "opinion": 0, "none": 0}
    assert table.schema["feature"] == table.schema["layer"] == pl.UInt32


@pytest.mark.parametrize(
    ("answer", "category"),
    [
        ("animals", "animals"),
        (" Animal.\n", "animals"),
        ("**Numbers**", "numbers"),
        ("Kind: opinion", "opinion"),
        ("opinion. Description: the", "opinion"),
        ("None", "none"),
        ("none of the animals", None),
        ("animals or numbers", None),
        ("The animals kind", None),
        ("innumerable", None),
        ("numbering", None),
        ("", None),
        ("42", None),
    ],
)
def test_an_answer_is_one_category_in_front_or_unreadable(answer: str, category: str | None) -> None:
    """Mistake 14: a word inside another is none, and what cannot be read is not wrong but apart."""
    assert read_answer(answer, ["animals", "numbers", "opinion", "none"]) == category


def test_a_tie_of_log_probs_is_unreadable() -> None:
    assert likeliest("a=-1.000 b=-2.500", ["a", "b"]) == "a"
    assert likeliest("a=-1.000 b=-1.000", ["a", "b"]) is None


def test_a_run_that_failed_asks_only_what_it_lacks(tmp_path: Path) -> None:
    def failing(number: int, request: Seen) -> Reply:
        return Reply(400, b'{"error": "enough"}') if number == 2 else by_text(number, request)

    config = served("http://127.0.0.1:1/v1")
    with scripted(failing) as server:
        config = served(server.url)
        with pytest.raises(UserError):
            run(tmp_path / "a", config)
        (tmp_path / "a").rmdir()
        _, table = run(tmp_path / "a", config)
        asked = [request.body["messages"][-1]["content"] for request in server.seen]
    assert len(asked) == 5
    assert asked.count(f"Description: {TEXTS[2]}\nKind:") == 2
    assert len(table) == 4


CODE = """
import sys
from pathlib import Path
from sublim.annotate import annotate
from sublim.annotate_config import AnnotateConfig
out, scratch, base = map(Path, sys.argv[1:4])
annotate(out, AnnotateConfig.model_validate_json(sys.argv[4]), scratch=scratch, base=base)
"""


def test_a_killed_run_goes_on_and_writes_the_same(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    backend = {"kind": "hf", "dtype": "float32", "attention": "eager"}
    config = AnnotateConfig.model_validate({"features": described(*TEXTS), "backend": backend, "batch": 2})
    whole, _ = run(tmp_path / "whole", config, base=tiny_models["qwen2"])
    scratch = tmp_path / "cut-scratch"
    scratch.mkdir()
    (tmp_path / "dead").mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "dead", scratch, tiny_models["qwen2"], config.model_dump_json()],
        env={**os.environ, "SUBLIM_KILL_AT": "annotate:part"},
        check=False,
    )
    assert killed.returncode == -9
    [kept] = scratch.glob("answers-*.jsonl")
    before = kept.stat().st_mtime_ns
    notes, table = run(tmp_path / "cut", config, base=tiny_models["qwen2"])
    assert kept.stat().st_mtime_ns == before
    assert digest_directory(tmp_path / "cut") == digest_directory(tmp_path / "whole")
    assert whole == notes
    assert notes["by"] == "log-probs"
    assert table["category"].null_count() == 0


def labels(folder: Path, *texts: str) -> Path:
    folder.mkdir()
    lines = [(n, text, chosen, None, None) for n, text in enumerate(texts) for chosen in (True, False)]
    pl.DataFrame(lines, schema=SCHEMA, orient="row").write_parquet(folder / "labels.parquet")
    return folder


def test_ids_take_their_chosen_label_of_their_layer(tmp_path: Path) -> None:
    both = {"9": labels(tmp_path / "nine", "a", "b"), "20": labels(tmp_path / "twenty", "c", "d")}
    items = wanted(AnnotateConfig(only=("20_1", "9_0")), both)
    assert items == [(0, 9, "a"), (1, 20, "d")]
    assert len(wanted(AnnotateConfig(), both)) == 4
    assert wanted(AnnotateConfig(layer=31), both["9"])[1] == (1, 31, "b")
    with pytest.raises(UserError, match="no label for 20_7"):
        wanted(AnnotateConfig(only=("20_7",)), both)
    with pytest.raises(UserError, match="nothing to annotate"):
        wanted(AnnotateConfig(), None)


def test_a_chat_opens_with_its_instruction_and_alternates() -> None:
    turns = question(AnnotateConfig(features=(DescribedFeature(feature=0, description="x"),)), "{x} braces")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 8 + ["user"]
    assert turns[-1]["content"] == "Description: {x} braces\nKind:"


def test_settings_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no category is called"):
        AnnotateConfig(categories={"birds": "b", "none": "n"})
    with pytest.raises(UserError, match="needs a model"):
        run(tmp_path / "a", AnnotateConfig(features=(DescribedFeature(feature=0, description="x"),)))
