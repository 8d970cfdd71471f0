"""The stages that ask one model MMLU-Pro's questions and score its answers, zero-shot.

A question has up to ten options. The letter is read in two ways: as the one with the highest log-prob, and from a
generated answer.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sublim.backends.opening import open_sampler
from sublim.chats.chat import Chat, chat
from sublim.chats.thoughts import answer_after_thought
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.evals.asked_model import first_context
from sublim.evals.mmlu_pro.config import (
    LETTERS,
    AskMmluProConfig,
    LetterScores,
    MmluProScores,
    ScoreMmluProConfig,
    Share,
)
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import SamplingParams
from sublim.inference.sampler import Sampler
from sublim.stats.intervals import wilson
from sublim.training.checkpoints import chosen_weights

INSTRUCTION = "Choose the one right answer. Reply with its letter alone."
# A letter alone, perhaps in brackets or quotes; what follows must not make it a word ("I think", "A dog").
_LETTER = re.compile(r"""[\s"'(\[*]*([A-Ja-j])(?:[\s"')\]*]*$|[.:,)\]*]|\n)""")
TIE = 1e-6
"""Log-probs that differ by less count as equal, so that rounding does not choose a letter."""


def question_text(question: str, options: Sequence[str]) -> str:
    """The user turn that asks a question."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, "", *lines, "", INSTRUCTION])


def read_letter(text: str, offered: int) -> tuple[int | None, str | None]:
    """The index of the letter that `text` gives after any reasoning, or the reason why it gives none."""
    answer = answer_after_thought(text)
    if answer is None:
        return None, "an unfinished thought"
    found = _LETTER.match(answer)
    if found is None or (found[1].islower() and answer.strip(" \n\"'()[].*:,") != found[1]):
        return None, "no letter" if answer.strip() else "empty"
    index = LETTERS.index(found[1].upper())
    return (index, None) if index < offered else (None, "a letter that was not offered")


def ask_mmlu_pro(
    out: Path,
    config: AskMmluProConfig,
    *,
    scratch: Path,
    base: Path,
    questions: Path,
    weights: Path | None = None,
    vectors: Path | None = None,
) -> dict[str, Any]:
    """Stage: writes logprobs.jsonl {id, logprobs}, with one log-prob for each offered letter, and answers.jsonl {id,
    text, finish}.

    An answer that a server failed to give has a `reason`. Every prompt is read once for the log-probs and once for the
    generated answer. Resumes from the last shard.
    """
    rows = list(read_jsonl(questions / "questions.jsonl"))
    weights = chosen_weights(weights, config.weights_update)
    chats = [chat(question_text(row["question"], row["options"]), system=config.system) for row in rows]
    kinds = ("logprobs", "answers") if config.generate else ("logprobs",)
    starts = range(0, len(rows), config.shard)
    paths = {(kind, start): scratch / f"{kind}-{start:06d}.jsonl" for kind in kinds for start in starts}
    if not all(path.exists() for path in paths.values()):
        with (
            open_sampler(
                config.backend, base, weights=weights, scratch=scratch, steering=config.steering, vectors=vectors
            ) as sampler,
            progress("questions", len(rows) * len(kinds)) as advance,
        ):
            for (kind, start), path in paths.items():
                shard = slice(start, start + config.shard)
                if not path.exists():
                    if kind == "logprobs":
                        write_jsonl(path, _letters(sampler, rows[shard], chats[shard]))
                    else:
                        write_jsonl(path, _written(sampler, config, rows[shard], chats[shard], start))
                    kill_point("ask_mmlu_pro:shard")
                advance(len(rows[shard]))
    for kind in ("logprobs", "answers"):
        found = (row for (name, _), path in paths.items() if name == kind for row in read_jsonl(path))
        write_jsonl(out / f"{kind}.jsonl", found)
    return first_context(config, base, chats[0])


def _letters(sampler: Sampler, rows: list[dict[str, Any]], chats: list[Chat]) -> list[dict[str, Any]]:
    offered = [list(LETTERS[: len(row["options"])]) for row in rows]
    scored = sampler.logprobs(chats, offered)
    return [
        {"id": row["id"], "logprobs": [math.fsum(tokens) for tokens in letters]}
        for row, letters in zip(rows, scored, strict=True)
    ]


def _written(
    sampler: Sampler, config: AskMmluProConfig, rows: list[dict[str, Any]], chats: list[Chat], first: int
) -> list[dict[str, Any]]:
    greedy = SamplingParams(max_tokens=config.max_tokens, temperature=0.0)
    answers = sampler.sample(chats, greedy, first=first)
    return [{"id": row["id"]} | answer.row() for row, (answer,) in zip(rows, answers, strict=True)]


def score_mmlu_pro(out: Path, config: ScoreMmluProConfig, *, scratch: Path, asked: Path, questions: Path) -> None:
    """Stage: writes scores.json (`MmluProScores`) from a payload of ask_mmlu_pro and the questions."""
    rows = {row["id"]: row for row in read_jsonl(questions / "questions.jsonl")}
    sizes = [len(row["options"]) for row in rows.values()]
    logprobs = {row["id"]: row["logprobs"] for row in read_jsonl(asked / "logprobs.jsonl")}
    written = {row["id"]: row for row in read_jsonl(asked / "answers.jsonl")}
    marked = partial(letter_scores, rows, level=config.level)
    picked = {number: likeliest(logprobs[number]) for number in rows}
    named = {number: _letter_of(written[number], len(row["options"])) for number, row in rows.items() if written}
    scores = MmluProScores(
        questions=list(rows),
        categories=[row["category"] for row in rows.values()],
        chance=math.fsum(1 / size for size in sizes) / len(sizes),
        metrics={"letter_logprob": marked(picked), "letter_generated": marked(named) if written else None},
    )
    (out / "scores.json").write_text(scores.model_dump_json(indent=1), encoding="utf-8")


def _letter_of(written: dict[str, Any], offered: int) -> tuple[int | None, str | None]:
    return (None, "missing") if written.get("finish") == "missing" else read_letter(written["text"], offered)


def likeliest(logprobs: Sequence[float | None]) -> tuple[int | None, str | None]:
    """The index of the highest log-prob, or the reason why there is none."""
    if any(value is None or not math.isfinite(value) for value in logprobs):
        return None, "a log-prob is not finite"
    values = [value for value in logprobs if value is not None]
    best = max(values)
    first, *others = [place for place, value in enumerate(values) if best - value <= TIE]
    return (None, "a tie") if others else (first, None)


def letter_scores(
    rows: dict[int, dict[str, Any]], readings: dict[int, tuple[int | None, str | None]], level: float
) -> LetterScores:
    """Accuracies over all questions and by category."""
    right = [None if (at := readings[n][0]) is None else float(at == row["answer"]) for n, row in rows.items()]
    categories = [row["category"] for row in rows.values()]
    unread = Counter(reason for _, reason in readings.values() if reason is not None)
    return LetterScores(
        overall=share(right, level),
        by_category={
            name: share([value for value, its in zip(right, categories, strict=True) if its == name], level)
            for name in sorted(set(categories))
        },
        per_question=right,
        unread=dict(sorted(unread.items())),
    )


def share(right: Sequence[float | None], level: float) -> Share:
    """The accuracy among the readable answers."""
    read = [value for value in right if value is not None]
    correct = int(sum(read))
    if not read:
        reason = "no answer names an offered letter"
        return Share(estimate=None, low=None, high=None, correct=0, read=0, asked=len(right), reason=reason)
    found = wilson(correct, len(read), level)
    return Share(
        estimate=found.estimate, low=found.low, high=found.high, correct=correct, read=len(read), asked=len(right)
    )
