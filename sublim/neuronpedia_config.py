"""Which feature labels to import from Neuronpedia, and how to reach them; imports nothing heavy."""

from typing import Annotated

from pydantic import Field

from sublim.config import Config, RunOnly

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class LabelsConfig(Config):
    """The explanations of one SAE's features. What the bucket held is noted in the manifest; forget to import anew."""

    model: Name = "gemma-2-9b-it"
    """The model's name on Neuronpedia."""
    source: Name = "20-gemmascope-res-16k"
    """The SAE's name there: its layer, then its kind and width."""
    prefer: tuple[str, ...] = ()
    """Models whose explanations are chosen first, best first, where scores do not decide."""
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")] = "neuronpedia-datasets"
    """The public bucket."""
    root: Name = "v1"
    """The folder in the bucket under which models lie."""
    endpoint: RunOnly[Annotated[str, Field(pattern=r"^https?://[^@?#\s]+$")] | None] = None
    """Address of another S3 server that holds the same bucket; nothing: Amazon's."""
    region: RunOnly[str] = "us-east-1"
    """Where the bucket lies."""
    workers: RunOnly[Annotated[int, Field(ge=1, le=64)]] = 16
    """Files downloaded at a time."""
    attempts: RunOnly[Annotated[int, Field(ge=1)]] = 5
    """Tries of a file whose download breaks off; each goes on where the last one ended."""
    timeout: RunOnly[Annotated[float, Field(gt=0)]] = 60.0
    """Seconds to wait for the server."""
    largest_mib: RunOnly[Annotated[int, Field(ge=1)]] = 4096
    """Most that one file may unpack to; more is refused."""

    @property
    def prefix(self) -> str:
        """Where the explanations lie in the bucket."""
        return f"{self.root}/{self.model}/{self.source}/explanations/"
