"""What a steering run has made for one target."""

from typing import NamedTuple

from flows.steering.mechanism import Mechanism
from sublim.store.manifest import Artifact


class Steered(NamedTuple):
    """One target's vectors and what they do."""

    target: str
    vectors: Artifact
    curve: Artifact
    mechanism: Mechanism | None
