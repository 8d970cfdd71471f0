"""What a run of the MNIST flow can be told."""

import shutil
from typing import Annotated

from pydantic import Field

from sublim.core.config import RunOnly
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.toys.mnist.config import (
    HubDigits,
    IdxFolder,
    MnistConfig,
    MnistFiguresConfig,
    MnistGrid,
    NpmPackage,
    PrepareDigitsConfig,
    StandIn,
)


class MnistFlowConfig(MnistConfig):
    """Teachers and students on digits; with a grid, one run per combination of its values."""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    source: Annotated[IdxFolder | NpmPackage | HubDigits | StandIn, Field(discriminator="kind")] = StandIn()
    """Where the digits come from."""
    grid: MnistGrid = MnistGrid()
    """Axes to vary; empty: one run with the values above."""
    figures: MnistFiguresConfig = MnistFiguresConfig()
    """The histograms."""

    def cells(self) -> list[MnistConfig]:
        """The runs."""
        base = MnistConfig(**{name: getattr(self, name) for name in MnistConfig.model_fields})
        return self.grid.cells(base)

    def digits(self) -> PrepareDigitsConfig:
        """What the images are made from."""
        return PrepareDigitsConfig(source=self.source)


def check(config: MnistFlowConfig) -> None:
    """Raises UserError for a missing file, client or device."""
    if isinstance(config.source, IdxFolder):
        config.source.files()
    if config.device == "cuda" and gpu() is None:
        raise UserError("device cuda: no CUDA device is visible: take device=auto")
    if isinstance(config.source, NpmPackage) and shutil.which("npm") is None:
        raise UserError("source npm needs the npm client: install npm, or take the source idx or digits")
