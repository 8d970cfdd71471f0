"""What a report says of tests: their number and correction, and whether an arm that should show nothing does."""

from typing import Literal

from pydantic import Field

from sublim.core.config import Config
from sublim.evals.effect_config import Effect
from sublim.report.wording import between

SURVIVORS_SHOWN = 12
"""How many effects that survive the correction are named in a sentence; `--json` has all."""


class EquivalenceShown(Config):
    """Whether an arm that should show nothing was shown to show nothing, within a bound that was named beforehand."""

    bound: float
    """The bound in nats. Where it is a share, this is that share of the main arm's estimate."""
    share: float | None
    """The share of the main arm's effect that counts as nothing; null where the settings name the bound in nats."""
    low: float | None
    """Lower end of the 90 % paired t interval of the effect, which belongs to two one-sided tests at .05."""
    high: float | None
    verdict: str
    """shown to be nothing, not shown to be nothing, or something is there (`sublim.stats.equivalence`)."""

    @property
    def told(self) -> str:
        """The verdict with its interval and bound, in one line."""
        named = f"±{self.bound:.2f}" + (f", {self.share:g} of main" if self.share is not None else "")
        return f"{self.verdict} ({between(self.low, self.high)}; bound {named})"


class RunTests(Config):
    """The tests of a run, which are corrected for multiple comparisons together."""

    count: int
    """Number of tests: arms, updates, targets, specific effects and γ, by margin and rates, all that is shown."""
    test: str = "paired t over the units, two-sided; of γ the one-sided permutation test"
    correction: Literal["holm"] = "holm"
    smallest_p: float = 0.0
    """The smallest p that the t test can give: it has none, its p goes down to zero. γ tells its own."""
    smallest_sign_flip_p: float
    """What a sign-flip test, which needs no normal spread, could give at best with the fewest units tested."""
    alpha: float
    surviving: list[str] = Field(default_factory=list[str])
    """Names of the effects whose corrected p is at most `alpha`."""

    @property
    def _survivors(self) -> str:
        first, more = self.surviving[:SURVIVORS_SHOWN], len(self.surviving) - SURVIVORS_SHOWN
        return "; ".join([*first, *([f"and {more} more"] if more > 0 else [])]) or "none"

    @property
    def about(self) -> str:
        """How many tests there were, what they can show, and which effects survive the correction."""
        return (
            f"{self.count} tests ({self.test}), corrected together by Holm’s method: arms, updates, targets, specific "
            f"effects and γ, by margin and rates. At {self.alpha:.2g} {len(self.surviving)} survive: "
            f"{self._survivors}. The t test trusts that units spread normally; a sign-flip test, "
            f"which does not, could not give a p below {self.smallest_sign_flip_p:.2g} with so few units. "
            "Generic effects, other words, costs and distances are shown untested."
        )


def p_told(effect: Effect | None) -> str:
    """p, and p after correction for all tests of the run; a dash for an effect that was not tested."""
    return (
        "–" if effect is None or effect.p is None or effect.p_holm is None else f"{effect.p:.2g}, {effect.p_holm:.2g}"
    )
