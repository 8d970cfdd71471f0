"""Seeds of the toy models' random numbers."""

import hashlib


def stream_key(seed: int, stream: str) -> int:
    """A signed 64-bit seed for the random numbers of one purpose, `stream`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "big", signed=True)
