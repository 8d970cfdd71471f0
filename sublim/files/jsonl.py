"""JSON Lines files, read and written one row at a time, so that memory does not grow with the file."""

import codecs
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from sublim.core.errors import UserError
from sublim.files.whole_files import whole_file


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of `path`, without blank lines. Raises UserError for a line that is not a JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UserError(f"{path}:{number} is not JSON ({error}): correct or remove the line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is not a JSON object: correct or remove the line")
            yield row


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes `rows` to `path`, with their keys in the order given, and returns the number of rows.

    The file is complete or absent: nothing is left of it if `rows` raises an error, or after a power failure.
    """
    count = 0
    with whole_file(path) as draft, draft.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(dict(row), option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))
            count += 1
    return count
