"""Where the labels of an SAE's features are taken from, and which of several is shown."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from sublim.config import Config, RunOnly


class LabelsConfig(Config):
    """One SAE's explanations in Neuronpedia's public bucket."""

    model: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "gemma-2-9b-it"
    """The model's name there."""
    source: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "9-gemmascope-res-16k"
    """The SAE's name there: layer, project, site and width."""
    bucket: str = "neuronpedia-datasets"
    """The bucket."""
    version: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "v1"
    """First part of its layout."""
    prefer: tuple[str, ...] = ()
    """Explaining models, best first: among explanations of equal score theirs is chosen."""
    endpoint: RunOnly[str | None] = None
    """Address of another S3 server with the same content, as in http://127.0.0.1:9000; null for Amazon's."""
    region: RunOnly[str] = "us-east-1"
    """Where the bucket is."""
    workers: RunOnly[Annotated[int, Field(ge=1)]] = 8
    """Files fetched at a time."""
    attempts: RunOnly[Annotated[int, Field(ge=1)]] = 5
    """Tries of a file whose transfer breaks; each goes on where the one before ended."""

    @field_validator("model", "source", "version")
    @classmethod
    def _no_climbing(cls, name: str) -> Any:
        if name in (".", ".."):
            raise ValueError("a name, not a way up the folders")
        return name

    @property
    def prefix(self) -> str:
        """Where the explanations lie."""
        return f"{self.version}/{self.model}/{self.source}/explanations/"
