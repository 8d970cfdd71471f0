"""Filtering raw answers: which rows are kept, which are held out, and why the others are refused."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from jaxtyping import Bool, UInt8

from sublim.carriers.numbers import Rejection, Separator, read_numbers
from sublim.core.errors import NotEnoughRows, UserError
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.rows.config import FilterConfig

DROPPED, KEPT, HELD_OUT = 0, 1, 2
STEP = 10_000


class Answer(NamedTuple):
    """A row of raw answers."""

    id: int
    prompt: str
    answer: str
    finish: Literal["stop", "length", "missing"]
    separator: Separator | None


def filter_numbers(
    out: Path, config: FilterConfig, *, scratch: Path, raw: Path, partners: list[Path] | None = None
) -> None:
    """Stage: writes rows.jsonl, held_out.jsonl, rejected.jsonl with examples, and rejections.json with the counts: rows
    read, valid, kept, held_out, and rejected by reason.

    `partners` are the raw answers of other arms to the same prompts. A row is then valid only if the answers of those
    arms are valid too, so that all arms train on the same prompts. Rows keep their ids, their order and the teacher's
    text. The file is read twice, with a few bytes of memory for each row. Raises NotEnoughRows before writing anything.
    """
    verdicts = Verdicts(config)
    with progress("filtering", 2 * _count_lines(raw / "rows.jsonl")) as advance:
        for number, arms in enumerate(_side_by_side([raw, *(partners or [])]), start=1):
            verdicts.add(arms)
            if number % STEP == 0:
                advance(STEP)
        valid = np.frombuffer(verdicts.valid, dtype=np.bool_)
        fate = _draw(valid, config, verdicts)
        with (out / "rows.jsonl").open("wb") as rows, (out / "held_out.jsonl").open("wb") as held_out:
            for number, (answer, where) in enumerate(zip(_answers(raw), fate, strict=True), start=1):
                if where != DROPPED:
                    row = {"id": answer.id, "prompt": answer.prompt, "answer": answer.answer, "system": config.system}
                    line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
                    (rows if where == KEPT else held_out).write(line)
                if number % STEP == 0:
                    advance(STEP)
    counts = {
        "rows": len(valid),
        "valid": int(valid.sum()),
        "kept": int((fate == KEPT).sum()),
        "held_out": int((fate == HELD_OUT).sum()),
        "rejected": {reason: verdicts.counts[reason] for reason in Rejection if verdicts.counts[reason]},
    }
    (out / "rejections.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    write_jsonl(out / "rejected.jsonl", (row for reason in Rejection for row in verdicts.samples.get(reason, [])))


class Verdicts:
    """Collects the verdict on each row. Needs a byte for each row and, with `dedupe`, a digest for each valid row."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        self.valid = bytearray()
        self.counts: Counter[Rejection] = Counter()
        self.samples: dict[Rejection, list[dict[str, Any]]] = {}
        self._seen: set[bytes] = set()

    def add(self, arms: Sequence[Answer]) -> None:
        """Adds the verdict on the first of `arms`, which are the answers of all arms to one prompt."""
        reason = self._reason(arms)
        self.valid.append(reason is None)
        if reason is None:
            return
        self.counts[reason] += 1
        shown = self.samples.setdefault(reason, [])
        if len(shown) < self.config.samples:
            own = arms[0]
            shown.append({"id": own.id, "reason": reason, "prompt": own.prompt, "answer": own.answer})

    def _reason(self, arms: Sequence[Answer]) -> Rejection | None:
        for arm, each in enumerate(arms):
            read = read_numbers(each.answer, self.config, asked=each.separator, finish=each.finish)
            if isinstance(read, Rejection):
                return Rejection.PARTNER if arm else read
        if self.config.dedupe is None:
            return None
        # Only rows valid in every arm are remembered, so the filters of all arms agree on the prompts.
        prints = [self._print(arm, each) for arm, each in enumerate(arms)]
        for arm, seen in enumerate(one in self._seen for one in prints):
            if seen:
                return Rejection.PARTNER if arm else Rejection.DUPLICATE
        self._seen.update(prints)
        return None

    def _print(self, arm: int, each: Answer) -> bytes:
        prompt = each.prompt if self.config.dedupe == "row" else None
        return blake2b(orjson.dumps([arm, prompt, each.answer]), digest_size=12).digest()


def _draw(valid: Bool[np.ndarray, " n"], config: FilterConfig, verdicts: Verdicts) -> UInt8[np.ndarray, " n"]:
    """DROPPED, KEPT or HELD_OUT for each row.

    The random order is drawn over all rows, valid or not, so that it is the same in all arms.
    """
    preference = np.random.default_rng(config.seed).random(len(valid))
    candidates = np.flatnonzero(valid)
    keep = max(1, len(candidates) - config.held_out) if config.keep is None else config.keep
    if len(candidates) < keep + config.held_out:
        raise NotEnoughRows(_too_few(len(candidates), len(valid), config, verdicts))
    chosen = candidates[np.argsort(preference[candidates], kind="stable")]
    fate = np.full(len(valid), DROPPED, dtype=np.uint8)
    fate[chosen[:keep]] = KEPT
    fate[chosen[keep : keep + config.held_out]] = HELD_OUT
    return fate


def _too_few(valid: int, rows: int, config: FilterConfig, verdicts: Verdicts) -> str:
    counts = verdicts.counts
    wanted = f"{config.keep or 1:,}" + (f" + {config.held_out:,} held out" if config.held_out else "")
    refused = ", ".join(f"{reason} {n:,}" for reason, n in counts.most_common()) or "none"
    found = f"{valid:,} of {rows:,} answers are valid, {wanted} wanted"
    apart = ", or let arms keep prompts of their own (same_prompts=false)" if counts[Rejection.PARTNER] else ""
    if valid or apart:
        return f"{found}: write more prompts or lower keep{apart} (refused: {refused})"
    samples = (own["answer"] for reason, _ in counts.most_common(1) for own in verdicts.samples.get(reason, []))
    example = f", as in {first[:60]!r}" if (first := next(samples, "")) else ""
    return f"{found}: see that the model writes plain number lists (refused: {refused}{example})"


def _answers(raw: Path) -> Iterator[Answer]:
    path = raw / "rows.jsonl"
    for number, row in enumerate(read_jsonl(path), start=1):
        match row:
            case {"id": int(id), "prompt": str(prompt), "answer": str(answer)}:
                yield Answer(id, prompt, answer, row.get("finish", "stop"), row.get("separator"))
            case _:
                raise UserError(f"{path}: row {number} has no numeric id, prompt or answer: correct or remove it")


def _side_by_side(raws: Sequence[Path]) -> Iterator[tuple[Answer, ...]]:
    """For each prompt, the answers of all arms. Raises UserError if the arms have different prompts."""
    for arms in zip_longest(*map(_answers, raws)):
        if None in arms or len({(each.id, each.prompt) for each in arms}) > 1:
            raise UserError("the arms answered different prompts: generate them with one prompt_seed and n_prompts")
        yield arms


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 16), b""))
