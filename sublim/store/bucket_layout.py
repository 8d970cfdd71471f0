"""Names of a store's objects in a bucket, and the object that marks a prefix as a store."""

import json
from secrets import token_hex

from sublim.core.errors import StoreRefused
from sublim.store.layout import RESERVED
from sublim.store.manifest import FORMAT
from sublim.store.s3 import Bucket


def is_manifest(name: str) -> bool:
    """Whether an object is the manifest of an artifact."""
    parts = name.split("/")
    return len(parts) == 3 and parts[2] == "manifest.json" and parts[0] not in RESERVED


def read_marker(bucket: Bucket) -> bytes:
    """The content of store.json, which marks a prefix as a store and holds its id; written at the first use."""
    found = bucket.get("store.json")
    if found is None:
        bucket.put("store.json", json.dumps({"format": FORMAT, "id": token_hex(8)}).encode())
        found = bucket.get("store.json")
    if found is None:
        raise StoreRefused(f"the store {bucket.address} does not keep what is written into it")
    return found.body
