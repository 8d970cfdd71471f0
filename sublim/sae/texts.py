"""Texts to train an SAE on: chats that the model writes, a user's file, and all sources gathered into one file.

The same prompt may be answered several times, by different seeds or teachers. Rows are held out by prompt, so that no
answer to a held-out prompt is trained on.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sublim.backends.opening import open_sampler
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.core.kill_points import kill_point
from sublim.core.progress import progress
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.files.user_files import check_file, read_text, reading
from sublim.files.user_tables import PARQUET
from sublim.sae.texts_config import GatherTextsConfig, ImportTextsConfig, WriteChatsConfig

Row = dict[str, Any]


def write_chats(out: Path, config: WriteChatsConfig, *, scratch: Path, base: Path) -> dict[str, Any]:
    """Stage: writes chats to rows.jsonl {id, prompt, answer, system}. Resumes from the last complete shard.

    Empty answers are left out and counted. The cost is that of sampling: on a CPU, some hundred tokens a second.
    """
    prompts = [form.replace("{subject}", subject) for subject in config.topics.subjects for form in config.topics.forms]
    order = np.random.default_rng([config.sampling.seed, 2]).permutation(len(prompts))
    size = config.shard or (4096 if gpu() else 64)
    shards = [range(first, min(first + size, config.chats)) for first in range(0, config.chats, size)]
    paths = {shard: scratch / f"chats-{shard.start}-{shard.stop}.jsonl" for shard in shards}
    missing = [shard for shard in shards if not paths[shard].exists()]
    with progress("writing chats", config.chats) as advance:
        advance(config.chats - sum(map(len, missing)))
        if missing:
            with open_sampler(config.backend, base, scratch=scratch) as sampler:
                for shard in missing:
                    asked = [prompts[order[index % len(prompts)]] for index in shard]
                    answers = sampler.sample([chat(prompt) for prompt in asked], config.sampling, first=shard.start)
                    rows = (
                        {"id": number, "prompt": prompt, "answer": written[0].text, "system": None}
                        for number, prompt, written in zip(shard, asked, answers, strict=True)
                    )
                    write_jsonl(paths[shard], rows)
                    kill_point("chats:shard")
                    advance(len(shard))
    every = (row for path in paths.values() for row in read_jsonl(path))
    kept = write_jsonl(out / "rows.jsonl", (row for row in every if row["answer"].strip()))
    return {"rows": kept, "empty": config.chats - kept, "prompts": len(prompts)}


def import_texts(out: Path, config: ImportTextsConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: writes rows.jsonl {id, text} or {id, prompt, answer, system} from a user's file (see `read_rows`).

    Raises UserError if the file has no text.
    """
    path = config.path.expanduser()
    pieces = (piece for row in read_rows(path) for piece in cut_text(row, config.longest))
    count = write_jsonl(out / "rows.jsonl", ({"id": number, **row} for number, row in enumerate(pieces)))
    if not count:
        raise UserError(f"{path} has no text in it: give a file that has some")
    return {"rows": count}


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a user's .txt, .jsonl or .parquet file, with the keys that are used alone.

    Raises UserError for a row without `text`, or `prompt` and `answer`.
    """
    match path.suffix:
        case ".txt":
            found: Iterator[Row] = ({"text": line} for line in read_text(path, "text file").split("\n"))
        case ".jsonl":
            check_file(path, "file of JSON lines")
            found = read_jsonl(path)
        case _:
            with reading(path, PARQUET, pl.exceptions.PolarsError):
                found = pl.read_parquet(path).iter_rows(named=True)
    for number, row in enumerate(found):
        if isinstance(row.get("text"), str):
            yield {"text": row["text"]}
        elif isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
            system = row.get("system")
            if not isinstance(system, str | None):
                raise UserError(f"{path}: row {number} has {system!r} as its system prompt: give text or null")
            yield {"prompt": row["prompt"], "answer": row["answer"], "system": system}
        else:
            raise UserError(f"{path}: row {number} has neither `text` nor `prompt` and `answer`: name its columns so")


def cut_text(row: Row, longest: int) -> Iterator[Row]:
    """Cuts a text into pieces of at most `longest` characters that are not blank; a chat is not cut."""
    if "text" not in row:
        if row["answer"].strip():
            yield row
        return
    for first in range(0, len(row["text"]), longest):
        if (piece := row["text"][first : first + longest]).strip():
            yield {"text": piece}


def gather_texts(out: Path, config: GatherTextsConfig, *, scratch: Path, sources: dict[str, Path]) -> dict[str, Any]:
    """Stage: writes rows.jsonl and held_out.jsonl {id, source, ...} from the rows.jsonl of every source.

    Identical rows are kept once. The order of held_out.jsonl is drawn from the seed. Raises UserError if nothing is
    held out.
    """
    seen: set[bytes] = set()
    held: list[Row] = []
    counts = {name: {"rows": 0, "held_out": 0, "repeated": 0} for name in sorted(sources)}

    def trained() -> Iterator[Row]:
        for name in sorted(sources):
            for row in read_jsonl(sources[name] / "rows.jsonl"):
                kept = {key: row[key] for key in ("text", "prompt", "answer", "system") if key in row}
                mark = hashlib.blake2b(repr(sorted(kept.items())).encode(), digest_size=16).digest()
                if mark in seen:
                    counts[name]["repeated"] += 1
                    continue
                seen.add(mark)
                asked: str = row.get("prompt", row.get("text", ""))
                kept = {"id": len(seen) - 1, "source": name, **kept}
                if is_held_out(asked, config):
                    held.append(kept)
                    counts[name]["held_out"] += 1
                else:
                    counts[name]["rows"] += 1
                    yield kept

    write_jsonl(out / "rows.jsonl", trained())
    order = np.random.default_rng([config.seed, 3]).permutation(len(held))
    write_jsonl(out / "held_out.jsonl", (held[index] for index in order))
    if not held:
        raise UserError("no text is held out, so that no SAE could be measured: raise `held_out` or give more texts")
    return {"sources": counts}


def is_held_out(text: str, config: GatherTextsConfig) -> bool:
    """Whether a prompt belongs to the held-out share; this depends on its text and the seed alone."""
    mark = hashlib.blake2b(f"{config.seed}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(mark, "big") < config.held_out * 2**64
