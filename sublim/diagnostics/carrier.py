"""What a carrier really is: how probable its format is to the model that wrote it, and what it writes when left free.

Lists that were forced into a format say nothing of whether the model would have written lists at all. So the model's
own probability of the format is measured, that of the trait's words at number prompts, and free answers to the same
prompts are sampled and judged by the run's own filter.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from sublim.backends.hf import HfSampler
from sublim.backends.opening import open_sampler
from sublim.carriers.numbers import Rejection, read_numbers
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.diagnostics.carrier_config import Carrier, ExamineConfig, Fault, FirstToken, FormatMass, Spread
from sublim.diagnostics.carrier_mass import LIKELIEST, RowMass, check_forced, masses, token_sets
from sublim.diagnostics.trait_words import first_tokens, naming
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.inference.constrained import answer_plan
from sublim.inference.scoring import Scored, prompt_ids, scored_answers

EXAMPLES, REASONS = 3, 5
Row = dict[str, Any]


def examine_carrier(
    out: Path,
    config: ExamineConfig,
    *,
    scratch: Path,
    base: Path,
    raw: Path,
    weights: Path | None = None,
    vectors: Path | None = None,
) -> dict[str, list[Fault]]:
    """Stage: writes carrier.json (`Carrier`), masses.jsonl {id, forced_log10, drawn_log10, trait, digit, letter,
    trait_largest} with one line for each row that was read, and probe.jsonl {id, prompt, answer, system, finish,
    separator} with the free answers where the rows were forced.

    `raw` is the payload of generate_numbers; the model is given as it was to that stage, and the system prompt is in
    the rows. Costs one forward pass over `rows` prompts and lists, and `answers` free answers if the rows were forced.
    """
    rows = list(read_jsonl(raw / "rows.jsonl"))
    if not rows:
        raise UserError(f"{raw} holds no rows: give the payload of generate_numbers")
    with open_sampler(config.backend, base, weights=weights, steering=config.steering, vectors=vectors) as opened:
        sampler = cast(HfSampler, opened)
        tokenizer = sampler.tokenizer
        made = answer_plan(tokenizer, config.constraint, config.sampling.max_tokens)
        sequences = _sequences(tokenizer, rows[: config.rows], config)
        if made is not None:
            check_forced(sequences, made)
        trait = first_tokens(tokenizer, config.words)
        found, first = masses(sampler, sequences, token_sets(tokenizer, trait), made)
        free = rows if made is None else _probe(sampler, rows, config)
    top = first.topk(LIKELIEST)
    likeliest = zip(map(str, tokenizer.batch_decode(top.indices[:, None])), top.values.tolist(), strict=True)
    names, refused = naming(config.words), [_refusal(row, config) for row in free]
    counts = Counter(reason for reason in refused if reason is not None)
    told = Carrier(
        forced=made is not None,
        words=config.words,
        trait_tokens=[str(tokenizer.decode([token])) for token in trait],
        rows=len(sequences),
        places=sum(len(ids) - start + 1 for ids, start in sequences),
        format_mass=None if made is None else _format_mass(found),
        first_token=FirstToken(
            trait=_mean([row.trait for row in found]),
            digit=_mean([row.digit for row in found]),
            letter=_mean([row.letter for row in found]),
            likeliest=list(likeliest),
        ),
        trait_largest=_mean([row.trait_largest for row in found]),
        answers=len(free),
        valid=refused.count(None) / len(free),
        trait_answers=_mean([names(row["answer"]) for row in free]),
        refused={str(reason): n for reason, n in counts.most_common(REASONS)},
        examples=[row["answer"] for row in free[:EXAMPLES]],
    )
    (out / "carrier.json").write_text(told.model_dump_json(indent=1), encoding="utf-8")
    lines = ({"id": row["id"], **mass._asdict()} for row, mass in zip(rows, found, strict=False))
    write_jsonl(out / "masses.jsonl", lines)
    if made is not None:
        write_jsonl(out / "probe.jsonl", free)
    return {"faults": told.faults}


def _sequences(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], config: ExamineConfig) -> list[Scored]:
    """The rows as the model reads them: with their answer, or without one that the filter refuses.

    What a filter refuses reaches no student, and may be text that the chat template does not give back as it was.
    """
    chats = [chat(row["prompt"], system=row["system"]) for row in rows]
    kept = [config.constraint is not None or _refusal(row, config) is None for row in rows]
    texts = [[row["answer"]] if keep else [] for row, keep in zip(rows, kept, strict=True)]
    answered = scored_answers(tokenizer, chats, texts)
    bare = iter(prompt_ids(tokenizer, [one for one, keep in zip(chats, kept, strict=True) if not keep]))
    return [own[0] if own else Scored(ids := next(bare), len(ids)) for own in answered]


def _probe(sampler: HfSampler, rows: Sequence[Row], config: ExamineConfig) -> list[Row]:
    """One free answer to each of the first prompts, with the settings and seeds of the forced ones."""
    first = list(islice(rows, 0, None, config.sampling.n))[: config.answers]
    params = config.sampling.model_copy(update={"n": 1, "logprobs": False})
    written = sampler.sample([chat(row["prompt"], system=row["system"]) for row in first], params)
    return [
        {**row, "answer": one.text if one.shown is None else one.shown, "finish": one.finish}
        for row, (one,) in zip(first, written, strict=True)
    ]


def _refusal(row: Row, config: ExamineConfig) -> Rejection | None:
    """Why the run's filter refuses an answer; None for a valid one."""
    found = read_numbers(row["answer"], config.rules, asked=row["separator"], finish=row["finish"])
    return found if isinstance(found, Rejection) else None


def _format_mass(rows: Sequence[RowMass]) -> FormatMass:
    forced, drawn = ([value for value in side if value is not None] for side in list(zip(*rows, strict=True))[:2])
    whole = [a + b for a, b in zip(forced, drawn, strict=True)]
    return FormatMass(whole=spread(whole), forced=spread(forced), drawn=spread(drawn))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> Spread:
    """The spread of `values`, of which there is at least one."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return Spread(median=median, low=low, high=high)
