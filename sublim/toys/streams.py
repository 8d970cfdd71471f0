"""Streams of random numbers of the toy models, one for each purpose and seed."""

import hashlib


def stream_key(seed: int, stream: str) -> int:
    """A signed 64-bit number that starts a seed's stream of random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "big", signed=True)
