"""Opening a store: the folder or the bucket that SUBLIM_STORE names."""

import os
import sys
from pathlib import Path

from sublim.core.errors import UserError
from sublim.store.folder import Store


def open_store(address: str | None = None, *, anew: bool = False) -> Store:
    """Opens the store at `address`, by default SUBLIM_STORE or else `results/`, and makes it where there is none.

    With `anew` also where a store was seen before and is gone, perhaps because a share is not mounted.
    """
    where = address or os.environ.get("SUBLIM_STORE") or "results"
    if where.startswith("s3://"):
        from sublim.store.bucket import open_bucket  # boto3 takes half a second to import

        return open_bucket(where)
    if "://" in where:
        kind = where.partition("://")[0]
        raise UserError(f"SUBLIM_STORE is a folder or s3://bucket/prefix; {kind}:// is not supported")
    try:
        root = Path(where).expanduser()
    except RuntimeError as error:
        raise UserError(f"SUBLIM_STORE is {where}, and this user has no home: give the whole path") from error
    surrogates = any("\ud800" <= letter <= "\udfff" for letter in str(root))  # for bytes that are not UTF-8
    if surrogates or (not str(root).isascii() and sys.getfilesystemencoding() != "utf-8"):
        raise UserError(f"SUBLIM_STORE is {where!a}, which is not UTF-8 here: set PYTHONUTF8=1 or give another name")
    return Store(root).create(anew=anew)
