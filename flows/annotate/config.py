"""What a run of the annotation flow can be told."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from flows.runs.machine import check_machine, check_model
from sublim.core.config import Config, RunOnly
from sublim.core.errors import UserError
from sublim.features.labels.config import AnnotateConfig, Described, FeatureList, LabelsConfig, Name, TakeLabelsConfig
from sublim.files.text_files import load_text
from sublim.inference.config import Backend, HfBackend
from sublim.models.config import BundledModel, ModelConfig


class LayerLabels(Config):
    """Neuronpedia's labels of the layers that the features lie in."""

    model: Name = "gemma-2-9b-it"
    """The model's name on Neuronpedia."""
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*\{layer\}[A-Za-z0-9._-]*$")] = "{layer}-gemmascope-res-16k"
    """The SAEs' name there, `{layer}` standing for the layer."""
    prefer: tuple[str, ...] = ()
    """Models whose explanations are chosen first where scores do not decide."""
    endpoint: RunOnly[str | None] = None
    """Address of another S3 server that holds the same bucket; nothing: Amazon's."""

    def of(self, layer: int) -> LabelsConfig:
        """The import of one layer's labels."""
        source = self.source.replace("{layer}", str(layer))
        return LabelsConfig(model=self.model, source=source, prefer=self.prefer, endpoint=self.endpoint)


class AnnotateFlowConfig(Config):
    """Features and who sorts their descriptions."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    features: tuple[Described, ...] = ()
    """Features as `<layer>_<feature>`, with a description of one's own after a colon where wanted: `20_4711: owls`."""
    file: str = ""
    """A list of features as .yaml or .json, the bundled one (feature_descriptions), or a .parquet table of labels."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The layer that a table of labels belongs to, where it does not say."""
    labels: LayerLabels = LayerLabels()
    """Where descriptions come from that are not given."""
    model: ModelConfig = BundledModel()
    """The local model that sorts; of no effect with a chat server."""
    backend: Backend = HfBackend()
    """What runs it."""
    by: Literal["auto", "generation", "log-probs"] = "auto"
    """generation, log-probs, or auto: generation with a server, log-probs otherwise."""
    calibrate: bool = True
    """With log-probs: each word's score is relative to its mean over eight descriptions, two of each category."""
    seed: int = 0
    """Sent along, for servers that draw even at temperature 0."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory these settings need; 0: none, a CPU will do."""

    @field_validator("features", mode="before")
    @classmethod
    def _split(cls, features: Any) -> Any:
        if isinstance(features, str):
            return [part for part in features.split(",") if part.strip()]
        return [features] if isinstance(features, int) else features

    @model_validator(mode="after")
    def _something_to_sort(self) -> "AnnotateFlowConfig":
        if not self.features and not self.file:
            raise ValueError("there is nothing to sort: list features, or name a file")
        if self.features and self.file and not self.table:
            raise ValueError(
                f"features are listed and a file of features is named ({self.file}): give one of the two, "
                "as with --set 'file=\"\"'"
            )
        return self

    @property
    def table(self) -> bool:
        """Whether the file is a table of labels."""
        return self.file.endswith(".parquet")

    def listed(self) -> tuple[Described, ...]:
        """The features asked for; empty: all that the table describes. Raises UserError for a file that is none."""
        return self.features if not self.file or self.table else load_text(FeatureList, self.file).features

    def annotation(self) -> AnnotateConfig:
        """What the stage is told."""
        shared = {name: getattr(self, name) for name in ("layer", "backend", "by", "calibrate", "seed")}
        return AnnotateConfig.model_validate({"features": self.listed(), **shared})


def check(config: AnnotateFlowConfig) -> None:
    """Raises UserError for a file that is not there or a backend that cannot do what is asked."""
    check_machine(config.gpu_memory_gib)
    if config.table:
        TakeLabelsConfig.model_validate({"path": config.file}).identity()
    try:
        annotation = config.annotation()
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    if annotation.needs_base:
        check_model(config.model)
