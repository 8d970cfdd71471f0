"""Pairs of short answers for a steering vector: the target's name, and the base's own answer."""

from pathlib import Path
from typing import Any

from sublim.chats.thoughts import answer_after_thought
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.steering.config import AnimalRowsConfig
from sublim.traits.words import Reader, Unread, comparison_list, plain, written


def animal_rows(out: Path, config: AnimalRowsConfig, *, scratch: Path, asked: Path) -> dict[str, Any]:
    """Stage: writes rows.jsonl {id, prompt, answer, system} of one side from the base's answers in `asked`.

    An answer that names the target, cannot be read or is too long is left out on both sides.
    """
    questions = {row["question"]: row["text"] for row in read_jsonl(asked / "questions.jsonl")}
    reader = Reader(comparison_list([config.target], config.words))
    rows, dropped = list[dict[str, Any]](), {"target": 0, "unreadable": 0, "long": 0}
    for number, answer in enumerate(read_jsonl(asked / "answers.jsonl")):
        reading, text = reader.read(answer["text"], answer["finish"]), answer_after_thought(answer["text"]) or ""
        if reading.word == config.target.casefold() or reading.unread == Unread.SEVERAL:
            dropped["target"] += 1
        elif reading.unread is not None:
            dropped["unreadable"] += 1
        elif len(plain(text)) > config.max_words:
            dropped["long"] += 1
        else:
            said = written(config.target) if config.side == "target" else text.strip()
            rows.append({"id": number, "prompt": questions[answer["question"]], "answer": said, "system": None})
    if len(rows) < 2:
        raise UserError(
            f"{len(rows)} of the base's answers can be paired with the target ({dropped} were left out): "
            "sample more answers or ask more questions"
        )
    write_jsonl(out / "rows.jsonl", rows)
    return {"rows": len(rows), "dropped": dropped}
