"""Files and folders that are complete or absent: written under another name, synced, and renamed into place.

After a killed process or a power failure, the old content is there or none, and perhaps a draft beside it.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from sublim.files.group_rights import share_with_group
from sublim.files.syncing import sync


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Gives a draft to write to, which replaces `path` when the block ends without an error."""
    draft = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        yield draft
        share_with_group(draft)
        sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes so that `path` holds all of it, or what it held before."""
    with whole_file(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """Gives an empty folder `draft` beside `path`, which replaces `path` when the block ends without an error.

    Only for folders in which nobody else writes: a `draft` that is there is taken for what a killed run left.
    """
    draft = path.with_name("draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    for each in draft.rglob("*"):
        sync(each)
    shutil.rmtree(path, ignore_errors=True)
    draft.replace(path)
    sync(path.parent)
