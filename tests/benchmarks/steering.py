"""A sweep of 10 strengths x 3 vectors: one loaded model against a model loaded anew for each, one sequence at a time.

    python -m tests.benchmarks.steering [--model DIR] [--questions 50] [--baseline 24] [--reloads 2]

Every point scores twelve animals after every question. The plain side loads the model for each point, hooks it and
runs each question with each animal by itself; it is measured on `--reloads` loadings and `--baseline` sequences and
scaled. Its log-probs are compared with ours.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from sublim.backends.opening import open_steerable
from sublim.chats.chat import Message, answer_ids, chat
from sublim.inference.config import HfBackend
from sublim.models.opening import forget_base, load_tokenizer, open_model
from sublim.residual.edits import Edit, Place, Steering, VectorNote
from sublim.residual.hooks import attached_at
from sublim.residual.vectors import Vector, noted, write_vectors
from sublim.traits.questions import load_questions
from sublim.traits.words import written
from tests.benchmarks.sampling import device, prepared, timed

STRENGTHS = (1, 2, 5, 10, 20, 50, 75, 100, -1, -5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--baseline", type=int, default=24)
    parser.add_argument("--reloads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(args.model or prepared(Path(folder)), Path(folder), args)


def compare(base: Path, folder: Path, args: argparse.Namespace) -> None:
    questions = load_questions("animal")
    chats = [chat(question) for question in questions.evaluation[: args.questions]]
    words = [written(word) for word in questions.words]
    made: dict[str, Vector] = {}
    with open_model(base, dtype="float32", attention="sdpa") as (model, _):
        width = model.config.hidden_size
    for layer in (9, 14, 20):
        values = torch.randn(width, generator=torch.Generator().manual_seed(layer)) / width**0.5
        made[f"v/{layer}"] = noted(values, VectorNote(site="resid_post", layer=layer, source="random", norm=0))
    write_vectors(folder, made)
    points = [Steering(edits=(Edit(vector=name, strength=s),)) for name in made for s in STRENGTHS]
    backend = HfBackend().resolved()
    forget_base()

    def ours() -> list[list[list[list[float]]]]:
        found: list[list[list[list[float]]]] = []
        with open_steerable(backend, base) as sampler:
            for point in points:
                sampler.steer(sampler.edits(point, folder))
                found.append(sampler.logprobs(chats, [words] * len(chats)))
        return found

    fast, scores = timed(ours)
    pairs = [(i, j) for i in range(len(chats)) for j in range(len(words))]
    some = pairs[:: max(1, len(pairs) // args.baseline)][: args.baseline]
    place, vector = Place("resid_post", 9), made["v/9"].values

    def load() -> None:
        forget_base()
        with open_model(base, dtype=backend.dtype, attention="sdpa"):
            pass

    loading = timed(lambda: [load() for _ in range(args.reloads)])[0] / args.reloads
    with open_model(base, dtype=backend.dtype, attention="sdpa") as (model, _), torch.no_grad():
        tokenizer, step = load_tokenizer(base), vector.to(model.device, model.dtype)

        def one(i: int, j: int) -> float:
            ids, start, end = answer_ids(tokenizer, [*chats[i], Message(role="assistant", content=words[j])])
            logits = model(torch.tensor([ids[: end - 1]], device=model.device)).logits[0].float()
            return float(logits.log_softmax(-1)[range(start - 1, end - 2), ids[start : end - 1]].sum())

        with attached_at(model, place, lambda stream: stream + step):
            one(0, 0)
            each, plain = timed(lambda: [one(i, j) for i, j in some])
    slow = len(points) * (loading + each / len(some) * len(pairs))
    off = max(abs(sum(scores[0][i][j]) - value) for (i, j), value in zip(some, plain, strict=True))
    print(
        f"steering: ratio {slow / fast:.1f} (plain {slow:.1f} s, ours {fast:.1f} s with its one loading, {device()}; "
        f"{len(points)} points of {len(pairs)} sequences, the plain side measured on {args.reloads} loadings of "
        f"{loading:.1f} s and {len(some)} sequences and scaled; largest difference of a log-prob {off:.1e})",
        flush=True,
    )


if __name__ == "__main__":
    main()
