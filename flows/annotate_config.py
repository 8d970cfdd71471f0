"""Everything an annotation run can be told: which features, where their descriptions come from, and who sorts them."""

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from sublim.annotate_config import AnnotateConfig
from sublim.config import Config, RunOnly
from sublim.model_config import BundledModel, ModelConfig
from sublim.neuronpedia_config import LabelsConfig


class Described(Config):
    """A description, and what a person said that it is."""

    description: Annotated[str, Field(min_length=1)]
    """What the feature is said to be."""
    feature: Annotated[int, Field(ge=0)] | None = None
    """Its number; null for its place in the list."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Its layer."""
    known: str | None = None
    """The category that a person gave it: how often the model agrees is reported."""


class AnnotateFlowConfig(Config):
    """Descriptions of features sorted into categories."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    features: tuple[Annotated[str, Field(pattern=r"^\d+_\d+$")], ...] = ()
    """Features whose labels Neuronpedia has, as <layer>_<feature>: [9_12001, 20_431]."""
    labels: LabelsConfig = LabelsConfig()
    """Where those labels are; its `source` is made for each layer."""
    source: str = "{layer}-gemmascope-res-16k"
    """The SAE's name there; `{layer}` stands for the feature's."""
    table: str | None = None
    """A Parquet of the user's own: feature, description, perhaps layer and chosen."""
    described: tuple[Described, ...] = ()
    """Descriptions given here."""
    annotate: AnnotateConfig = AnnotateConfig()
    """Categories, wording and backend."""
    model: ModelConfig = BundledModel()
    """The model that sorts; a chat server has its own."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory these settings need; 0: none, a CPU will do."""

    @field_validator("features", mode="before")
    @classmethod
    def _split(cls, features: Any) -> Any:
        return [name.strip() for name in features.split(",")] if isinstance(features, str) else features

    @model_validator(mode="after")
    def _something_known(self) -> Self:
        if not (self.features or self.table or self.described):
            raise ValueError("there is nothing to sort: give features, a table or descriptions")
        for each in self.described:
            if each.known is not None and each.known not in self.annotate.categories:
                raise ValueError(f"{each.description!r} is known to be {each.known!r}, which is no category")
        return self
