"""Settings that name the base of an experiment: a bundled model, a local folder or a revision on the Hub."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sublim.core.config import Config, RunOnly
from sublim.models.local_digest import folder_digest


class BundledModel(Config):
    """A model from an installed package, which needs no network."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["smollm2", "gemma3-270m"] = "smollm2"
    """`smollm2`: SmolLM2-135M-Instruct. `gemma3-270m`: Gemma 3 270M, pretrained only, with a plain chat template."""


class LocalModel(Config):
    """A Hugging Face model folder on this machine, identified by its content, so that the folder may be moved."""

    kind: Literal["local"] = "local"
    path: RunOnly[Path]
    """Folder with config.json, the tokenizer's files and weights in safetensors."""
    chat_template: str | None = None
    """Chat template (Jinja) that replaces the folder's own; required if the folder has none."""

    def identity(self) -> dict[str, Any]:
        """The fields of the cache key, with the digest of the files that are loaded instead of the path."""
        return super().identity() | {"content": folder_digest(self.path)}


class HubModel(Config):
    """A model on the Hugging Face Hub at a fixed commit."""

    kind: Literal["hub"] = "hub"
    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository, such as `google/gemma-2-9b-it`."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Full commit hash (40 hex digits). A branch or tag is not accepted, because it could move."""
    chat_template: str | None = None
    """Chat template (Jinja) that replaces the repository's own; required if it has none."""


ModelConfig = Annotated[BundledModel | LocalModel | HubModel, Field(discriminator="kind")]


class PrepareModelConfig(Config):
    """Settings of the stage `prepare_model`, which writes a plain model directory."""

    source: ModelConfig = BundledModel()
    """Source of the model."""
