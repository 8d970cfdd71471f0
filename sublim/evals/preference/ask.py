"""The stage that asks a model for its preferences.

`ask` runs the model and keeps log-probs and answers; `score` evaluates them for one target; `compare` pairs students
with controls. A metric that cannot be computed is null, with a reason, and never zero.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from sublim.backends.opening import open_sampler
from sublim.chats.chat import Context, chat
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.evals.asked_model import first_context
from sublim.evals.preference.config import AskConfig
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.config import OpenAIBackend, scores_words
from sublim.inference.sampler import Sampler
from sublim.training.checkpoints import chosen_weights
from sublim.traits.words import written

CPU_ANSWERS = 64
"""Number of answers that are sampled together without a GPU; an interruption loses at most these."""


def ask(
    out: Path,
    config: AskConfig,
    *,
    scratch: Path,
    base: Path,
    weights: Path | None = None,
    vectors: Path | None = None,
) -> dict[str, list[Context]]:
    """Stage: writes questions.jsonl, logprobs.jsonl {question, word, logprob, tokens} and answers.jsonl {question,
    sample, text, finish}.

    A chat server gives no log-probs, so `logprob` and `tokens` are then null. An answer that a server failed to give
    has a `reason`. `weights` is a training payload, an adapter or a full model. Costs the scoring of questions x words
    continuations and questions x samples short answers. Resumes from the last shard.
    """
    weights = chosen_weights(weights, config.weights_update)
    sampled = range(len(config.questions) if config.samples else 0)
    asked, scored = [scratch / f"answers-{i:05d}.jsonl" for i in sampled], scratch / "logprobs.jsonl"
    if not (scored.exists() and all(path.exists() for path in asked)):
        with open_sampler(
            config.backend, base, weights=weights, scratch=scratch, steering=config.steering, vectors=vectors
        ) as sampler:
            if not scored.exists():
                write_jsonl(scored, _logprobs(sampler, config))
                kill_point("ask:logprobs")
            _sample_missing(sampler, config, asked)
    write_jsonl(out / "questions.jsonl", ({"question": i, "text": text} for i, text in enumerate(config.questions)))
    write_jsonl(out / "logprobs.jsonl", read_jsonl(scored))
    write_jsonl(out / "answers.jsonl", (row for path in asked for row in read_jsonl(path)))
    return first_context(config, base, chat(config.questions[0], system=config.system))


def _logprobs(sampler: Sampler, config: AskConfig) -> list[dict[str, Any]]:
    if not scores_words(config.backend):
        unknown = {"logprob": None, "tokens": None}
        return [{"question": i, "word": word, **unknown} for i in range(len(config.questions)) for word in config.words]
    chats = [chat(question, system=config.system) for question in config.questions]
    continuations = [[written(word) for word in config.words]] * len(chats)
    with progress("scoring words", len(chats)) as advance:
        scored = sampler.logprobs(chats, continuations)
        advance(len(chats))
    for a, b in combinations(range(len(config.words)), 2):
        if all(_same_tokens(words[a], words[b]) for words in scored):
            pair = f"'{config.words[a]}' and '{config.words[b]}'"
            raise UserError(f"{pair} in the comparison list have the same tokens in this model: keep one of them")
    return [
        {"question": i, "word": word, "logprob": sum(tokens), "tokens": len(tokens)}
        for i, words in enumerate(scored)
        for word, tokens in zip(config.words, words, strict=True)
    ]


def _same_tokens(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two words have the same tokens: their log-probs are then equal up to rounding, token by token."""
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-5) for x, y in zip(a, b, strict=True))


def _sample_missing(sampler: Sampler, config: AskConfig, paths: list[Path]) -> None:
    params = config.sampling.model_copy(update={"n": max(config.samples, 1)})
    at_once = gpu() or isinstance(config.backend, OpenAIBackend)  # the answers of a server are kept one by one
    size = config.shard or (len(paths) if at_once else max(1, CPU_ANSWERS // params.n))
    with progress("sampling answers", len(paths) * config.samples) as advance:
        for start in range(0, len(paths), size or 1):
            shard = range(start, min(start + size, len(paths)))
            if not all(paths[i].exists() for i in shard):
                chats = [chat(config.questions[i], system=config.system) for i in shard]
                for i, answers in zip(shard, sampler.sample(chats, params, first=start), strict=True):
                    write_jsonl(paths[i], [{"question": i, "sample": j} | each.row() for j, each in enumerate(answers)])
                kill_point("ask:shard")
            advance(len(shard) * config.samples)
