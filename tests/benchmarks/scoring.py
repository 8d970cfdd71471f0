"""Scoring words as answers: shared prefixes against one plain pass for every question and word.

    python -m tests.benchmarks.scoring [--model DIR] [--baseline 60]

Fifty questions and twelve animals; the plain side is measured on `--baseline` of the 600 sequences and scaled, and its
log-probs are compared with ours.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from sublim.backends.opening import open_sampler
from sublim.chats.chat import Message, answer_ids, chat
from sublim.inference.config import HfBackend
from sublim.models.opening import open_model
from sublim.traits.questions import load_questions
from sublim.traits.words import written
from tests.benchmarks.sampling import device, prepared, timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--baseline", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(args.model or prepared(Path(folder)), args.baseline)


def compare(base: Path, baseline: int) -> None:
    questions = load_questions("animal")
    chats = [chat(question) for question in questions.evaluation[:50]]
    words = [written(word) for word in questions.words]
    with open_sampler(HfBackend(), base) as sampler:
        sampler.logprobs(chats[:2], [words[:2]] * 2)
        fast, scores = timed(lambda: sampler.logprobs(chats, [words] * len(chats)))
    pairs = [(i, j) for i in range(len(chats)) for j in range(len(words))]
    some = pairs[:: max(1, len(pairs) // baseline)]
    with open_model(base, dtype=HfBackend().resolved().dtype, attention="sdpa") as (model, tokenizer), torch.no_grad():

        def one(i: int, j: int) -> float:
            ids, start, end = answer_ids(tokenizer, [*chats[i], Message(role="assistant", content=words[j])])
            logits = model(torch.tensor([ids[: end - 1]], device=model.device)).logits[0].float()
            places = range(start - 1, end - 2)
            return float(logits.log_softmax(-1)[list(places), ids[start : end - 1]].sum())

        one(0, 0)
        slow, plain = timed(lambda: [one(i, j) for i, j in some])
    slow *= len(pairs) / len(some)
    off = max(abs(sum(scores[i][j]) - value) for (i, j), value in zip(some, plain, strict=True))
    print(
        f"scoring: ratio {slow / fast:.1f} (plain {slow:.1f} s, ours {fast:.2f} s, {device()}; {len(pairs)} sequences, "
        f"the plain side measured on {len(some)} of them and scaled; largest difference of a log-prob {off:.1e})",
        flush=True,
    )


if __name__ == "__main__":
    main()
