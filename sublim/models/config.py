"""Which language model an experiment starts from: the bundled one, a local folder or a pinned hub revision."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sublim.core.config import Config, RunOnly
from sublim.models.local_digest import folder_digest


class BundledModel(Config):
    """A model that comes with the installation and needs no network."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["smollm2", "gemma3-270m"] = "smollm2"
    """`smollm2`: SmolLM2-135M-Instruct; `gemma3-270m`: Gemma 3 270M, pretrained only, under a plain chat template."""


class LocalModel(Config):
    """A Hugging Face model folder on this machine, known by what is in it: moving the folder changes nothing."""

    kind: Literal["local"] = "local"
    path: RunOnly[Path]
    """Folder with config.json, the tokenizer's files and .safetensors weights."""
    chat_template: str | None = None
    """Jinja text of a chat template to use instead of the folder's own; needed where the folder has none."""

    def identity(self) -> dict[str, Any]:
        """The fields that bear identity and, in the path's place, the digest of the files that are loaded."""
        return super().identity() | {"content": folder_digest(self.path)}


class HubModel(Config):
    """A model of the Hugging Face hub at one commit."""

    kind: Literal["hub"] = "hub"
    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository, as in `google/gemma-2-9b-it`."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Full commit hash (40 hex digits): a branch or a tag could move."""
    chat_template: str | None = None
    """Jinja text of a chat template to use instead of the repository's own; needed where it has none."""


ModelConfig = Annotated[BundledModel | LocalModel | HubModel, Field(discriminator="kind")]


class PrepareModelConfig(Config):
    """What `prepare_model` turns into a plain model directory."""

    source: ModelConfig = BundledModel()
    """Where the model comes from."""
