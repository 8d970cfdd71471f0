"""What tells a store in a bucket from other objects, and where its copies lie on this machine."""

import json
import os
from pathlib import Path
from secrets import token_hex

from sublim.errors import StoreRefused, UserError
from sublim.manifest import FORMAT
from sublim.s3 import Bucket
from sublim.store import RESERVED
from sublim.user_cache import cache_home


def is_manifest(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[2] == "manifest.json" and parts[0] not in RESERVED


def marker(bucket: Bucket) -> bytes:
    """What says that a prefix is a store, and which; written at the first use."""
    found = bucket.get("store.json")
    if found is None:
        bucket.put("store.json", json.dumps({"format": FORMAT, "id": token_hex(8)}).encode())
        found = bucket.get("store.json")
    if found is None:
        raise StoreRefused(f"the store {bucket.address} does not keep what is written into it")
    return found.body


def cache_folder() -> Path:
    """Where buckets are mirrored: SUBLIM_CACHE, by default `sublim/stores` in the user's cache folder."""
    if where := os.environ.get("SUBLIM_CACHE"):
        return Path(where).expanduser()
    if (cache := cache_home()) is None:
        raise UserError("this user has no home to keep copies of the bucket's files in: set SUBLIM_CACHE to a folder")
    return cache / "sublim" / "stores"
