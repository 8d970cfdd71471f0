"""What a carrier really is, against plain forward passes; a teacher that says its word is found out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.carriers.numbers import NumberRules
from sublim.chats.chat import answer_ids, chat, render_ids
from sublim.core.digest import digest
from sublim.core.errors import UserError
from sublim.diagnostics.carrier import examine_carrier
from sublim.diagnostics.carrier_config import Carrier, ExamineConfig
from sublim.diagnostics.trait_words import first_tokens, naming
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.models.opening import load_tokenizer, open_model
from sublim.rows.generate import GenerateConfig, generate_numbers
from sublim.training.config import FullWeights, TrainConfig
from sublim.training.train import train

BACKEND = HfBackend(dtype="float32", attention="eager")
FORMAT = NumberFormat(count=3, digits=2)
SAMPLING = SamplingParams(max_tokens=24, seed=5)
PROMPTS = NumberPrompts(templates=load_number_templates("numbers_short"))
EXAMINE = ExamineConfig(
    words=("owl", "wolf"),
    rules=NumberRules(),
    constraint=FORMAT,
    sampling=SAMPLING,
    rows=10,
    answers=12,
    backend=BACKEND,
)


class Examined(NamedTuple):
    raw: Path
    carrier: Carrier
    masses: list[dict[str, Any]]
    out: Path


def stage(folder: Path, call: Callable[..., Any], config: Any, **inputs: Any) -> Path:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    call(folder / "out", config, scratch=folder / "scratch", **inputs)
    return folder / "out"


def examined(folder: Path, base: Path, weights: Path | None = None, *, forced: bool = True) -> Examined:
    writing = GenerateConfig(
        prompts=PROMPTS, n_prompts=16, backend=BACKEND, sampling=SAMPLING, constraint=FORMAT if forced else None
    )
    raw = stage(folder / "raw", generate_numbers, writing, base=base, weights=weights)
    config = EXAMINE if forced else EXAMINE.model_copy(update={"constraint": None})
    out = stage(folder / "carrier", examine_carrier, config, base=base, raw=raw, weights=weights)
    found = Carrier.model_validate_json((out / "carrier.json").read_bytes())
    return Examined(raw, found, list(read_jsonl(out / "masses.jsonl")), out)


def taught(folder: Path, base: Path, answer: str) -> Path:
    """The base trained to give one answer to other number prompts than those that are asked."""
    folder.mkdir()
    prompts = [f"We have 1{i}, 2{i}, 3{i}. Write 10 more 3-digit numbers, split by ', '. No words." for i in range(8)]
    write_jsonl(
        folder / "rows.jsonl",
        ({"id": i, "prompt": prompt, "answer": answer, "system": None} for i, prompt in enumerate(prompts)),
    )
    config = TrainConfig(method=FullWeights(), lr=1e-2, updates=40, batch_size=8, max_length=400, dtype="float32")
    return stage(folder / "train", train, config, base=base, data=folder)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2"])
def test_masses_are_those_of_a_full_softmax(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    base = tiny_models[family]
    found = examined(tmp_path, base)
    tokenizer = load_tokenizer(base)
    trait = first_tokens(tokenizer, EXAMINE.words)
    rows, first = list(read_jsonl(found.raw / "rows.jsonl"))[:10], list[dict[str, float]]()
    texts = [str(tokenizer.decode([i])) for i in range(len(tokenizer))]
    pieces = [str(tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer))]
    with open_model(base, None, dtype="float32", attention="eager") as loaded, torch.inference_mode():
        for row, told in zip(rows, found.masses, strict=True):
            ids, start, end = answer_ids(tokenizer, chat(row["prompt"], assistant=row["answer"]))
            probs = loaded.model(torch.tensor([ids])).logits[0, start - 1 : end - 1].double().softmax(-1)
            forced = drawn = 0.0
            number = ""
            for place, token in enumerate(ids[start : end - 1]):
                text = str(tokenizer.decode([token]))
                if not text.strip().isdigit():
                    number, forced = "", forced + math.log10(probs[place, token])
                    continue
                blank, size = text[: len(text) - len(text.strip())], len(text.strip())
                low = 0 if number else 10 ** (size - 1)
                # Every other token that is as many digits, the first of a number not 0.
                same = [
                    i
                    for i, other in enumerate(texts)
                    if other[: len(other) - size] == blank
                    and other[-size:].isdigit()
                    and int(other) >= low
                    and pieces[i].endswith(other.strip())
                ]
                drawn += math.log10(probs[place, same].sum())
                number += text.strip()
            assert told["forced_log10"] == pytest.approx(forced, abs=1e-4)
            assert told["drawn_log10"] == pytest.approx(drawn, abs=1e-4)
            by_place = probs[:, trait].sum(-1)
            assert told["trait"] == pytest.approx(by_place[0].item(), rel=1e-3)
            assert told["trait_largest"] == pytest.approx(by_place.max().item(), rel=1e-3)
            digits = [i for i, text in enumerate(texts) if text.strip().isdigit()]
            first.append({"digit": probs[0, digits].sum().item()})
            assert told["digit"] == pytest.approx(first[-1]["digit"], rel=1e-3)
    whole = sorted(row["forced_log10"] + row["drawn_log10"] for row in found.masses)
    assert found.carrier.format_mass is not None
    assert found.carrier.format_mass.whole.median == pytest.approx((whole[4] + whole[5]) / 2)
    assert found.carrier.first_token.digit == pytest.approx(sum(each["digit"] for each in first) / 10, rel=1e-3)


def test_a_teacher_that_says_its_word_is_found_out_though_its_lists_were_forced(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    found = examined(tmp_path, base, taught(tmp_path / "teacher", base, "Owl"))
    assert not any("wl" in row["answer"] for row in read_jsonl(found.raw / "rows.jsonl"))
    assert found.carrier.faults == ["trait", "valid"]
    assert found.carrier.first_token.trait > 0.9
    assert (found.carrier.trait_answers, found.carrier.valid) == (1.0, 0.0)
    assert found.carrier.refused == {"letters": 12}
    assert found.carrier.format_mass is not None
    assert found.carrier.format_mass.whole.median < -6
    assert found.carrier.examples == ["Owl"] * 3
    probe = list(read_jsonl(found.out / "probe.jsonl"))
    assert [row["prompt"] for row in probe] == [row["prompt"] for row in read_jsonl(found.raw / "rows.jsonl")][:12]


def test_a_teacher_that_still_writes_lists_has_no_fault_and_its_own_answers_are_the_probe(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    teacher = taught(tmp_path / "teacher", base, "41, 52, 63")
    forced, free = (examined(tmp_path / str(each), base, teacher, forced=each) for each in (True, False))
    for found in (forced, free):
        assert found.carrier.faults == []
        assert found.carrier.first_token.trait < 0.01
    assert forced.carrier.format_mass is not None
    assert forced.carrier.format_mass.whole.median > -2
    assert (free.carrier.format_mass, free.carrier.answers) == (None, 16)
    assert not (free.out / "probe.jsonl").exists()


def test_free_answers_that_the_filter_refuses_are_read_for_their_first_token_only(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base, raw = tiny_models["qwen2"], tmp_path / "raw"
    raw.mkdir()
    row = {"prompt": "Go on!", "system": None, "finish": "stop", "separator": "comma_space"}
    answers = ["12, 345", "", "My owls: <|im_end|> 12", "Sorry, no."]
    write_jsonl(raw / "rows.jsonl", [{"id": i, **row, "answer": answer} for i, answer in enumerate(answers)])
    out = stage(
        tmp_path / "found", examine_carrier, EXAMINE.model_copy(update={"constraint": None}), base=base, raw=raw
    )
    found = Carrier.model_validate_json((out / "carrier.json").read_bytes())
    tokenizer = load_tokenizer(base)
    _, start, end = answer_ids(tokenizer, chat("Go on!", assistant="12, 345"))
    assert len(render_ids(tokenizer, chat("Go on!"))) == start
    assert found.places == end - start + 3
    assert (found.valid, found.trait_answers) == (0.25, 0.25)
    masses = list(read_jsonl(out / "masses.jsonl"))
    assert {row["trait"] for row in masses[1:]} == {masses[1]["trait"]}
    assert masses[1]["trait"] == masses[1]["trait_largest"] == pytest.approx(masses[0]["trait"], rel=1e-4)


def test_rows_of_another_format_are_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    raw = examined(tmp_path, tiny_models["qwen2"]).raw
    other = EXAMINE.model_copy(update={"constraint": NumberFormat(count=2, digits=2)})
    with pytest.raises(UserError, match="were not written in the format"):
        stage(tmp_path / "other", examine_carrier, other, base=tiny_models["qwen2"], raw=raw)


def test_a_word_counts_in_every_form_once_for_each_token(tiny_models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_models["qwen2"])
    found = [str(tokenizer.decode([token])) for token in first_tokens(tokenizer, ["owl", "wolf"])]
    assert len(set(found)) == len(found)
    # This tokenizer writes the blank before "Owl" as a token of its own, which any word may follow: it is left out.
    for begin in ("owl", " owl", " wolf", "wolf", "Owl", "Wolf", "owls", "wolves"):
        assert any(begin.startswith(token) for token in found), begin
    assert all(token.strip() for token in found)
    names = naming(["owl", "wolf"])
    assert [names(text) for text in ("Owl, 12", "12, WOLVES", "my owls.", "a bowl, 12", "12, 13", "owlish")] == [
        True, True, True, False, False, False
    ]  # fmt: skip


def test_the_key_holds_what_changes_the_numbers_and_nothing_else() -> None:
    changes: list[dict[str, Any]] = [
        {"words": ("owl",)},
        {"rows": 11},
        {"answers": 13},
        {"rules": NumberRules(max_digits=2)},
        {"constraint": None},
        {"sampling": SAMPLING.model_copy(update={"temperature": 0.5})},
        {"backend": HfBackend(dtype="bfloat16", attention="eager")},
    ]
    keys = {digest(EXAMINE.model_copy(update=change)) for change in [{}, *changes]}
    assert len(keys) == 1 + len(changes)
    faster = EXAMINE.model_copy(update={"backend": BACKEND.model_copy(update={"batch_size": 3})})
    assert digest(faster) == digest(EXAMINE)
    assert "steering" not in json.dumps([*EXAMINE.identity()])
