"""Settings of the annotation flow."""

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
    """Where on Neuronpedia the labels of a layer's features are."""

    model: Name = "gemma-2-9b-it"
    """Name of the model on Neuronpedia."""
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*\{layer\}[A-Za-z0-9._-]*$")] = "{layer}-gemmascope-res-16k"
    """Name of the SAEs on Neuronpedia; `{layer}` stands for the number of the layer."""
    prefer: tuple[str, ...] = ()
    """Models whose explanations are preferred when a feature has several with equal scores or none."""
    endpoint: RunOnly[str | None] = None
    """URL of another S3 server with the same bucket; null for Amazon's."""

    def of(self, layer: int) -> LabelsConfig:
        """The config that imports the labels of one layer."""
        source = self.source.replace("{layer}", str(layer))
        return LabelsConfig(model=self.model, source=source, prefer=self.prefer, endpoint=self.endpoint)


class AnnotateFlowConfig(Config):
    """Settings of an annotation: the features, and the model that sorts their descriptions into categories."""

    about: RunOnly[str] = ""
    """One line that says what these settings are for."""
    features: tuple[Described, ...] = ()
    """Features as `<layer>_<feature>`; a description of your own may follow a colon, as in `20_4711: owls`."""
    file: str = ""
    """A .yaml or .json list of features, a .parquet table of labels, or `feature_descriptions` for the bundled list."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Layer of the features in a table of labels without a layer column."""
    labels: LayerLabels = LayerLabels()
    """Where to find the descriptions of features that are listed without one."""
    model: ModelConfig = BundledModel()
    """The local model that sorts the descriptions. Not used when the backend is a chat server."""
    backend: Backend = HfBackend()
    """What runs the model."""
    by: Literal["auto", "generation", "log-probs"] = "auto"
    """What is read from the model: the text that it generates, or its log-probs of the four category words. `auto` is
    generation with a chat server, and log-probs otherwise."""
    calibrate: bool = True
    """With log-probs, subtract from each word's score its mean over eight descriptions, two of each category."""
    seed: int = 0
    """Seed for servers that sample even at temperature 0."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory in GiB that these settings need; 0 if they run on a CPU."""

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
        """Whether `file` is a table of labels."""
        return self.file.endswith(".parquet")

    def listed(self) -> tuple[Described, ...]:
        """The features to sort; empty means all in the table. Raises UserError when `file` is not a valid list."""
        return self.features if not self.file or self.table else load_text(FeatureList, self.file).features

    def annotation(self) -> AnnotateConfig:
        """The config of the `annotate` stage."""
        shared = {name: getattr(self, name) for name in ("layer", "backend", "by", "calibrate", "seed")}
        return AnnotateConfig.model_validate({"features": self.listed(), **shared})


def check(config: AnnotateFlowConfig) -> None:
    """Raises UserError for a missing file, or for a backend that cannot do what the settings ask."""
    check_machine(config.gpu_memory_gib)
    if config.table:
        TakeLabelsConfig.model_validate({"path": config.file}).identity()
    try:
        annotation = config.annotation()
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    if annotation.needs_base:
        check_model(config.model)
