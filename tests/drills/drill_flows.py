"""Flows for the drills: short stages of which a killed or cancelled run leaves traces."""

from prefect import flow

from tasks.stage import Stage
from tests.tasks.sample_stages import CountConfig, RelativesConfig, ShardsConfig

SAMPLE = "tests.tasks.sample_stages"
count = Stage("count", f"{SAMPLE}:count")
shards = Stage("shards", f"{SAMPLE}:shards")
relatives = Stage("relatives", f"{SAMPLE}:relatives", gpu=True)


@flow(name="drill", flow_run_name="drill of {size} bytes")
def drill(journal: str, size: int, pieces: int = 8, pause: float = 0.5) -> str:
    """A short stage and a longer one that resumes."""
    numbers = count(CountConfig(upto=size))
    return shards(ShardsConfig(shards=pieces, size=size, pause=pause, journal=journal), numbers=numbers).content


@flow(name="linger")
def linger(journal: str) -> str:
    """A stage that does not end, in a process of its own, as on a GPU."""
    return relatives(RelativesConfig(journal=journal, then="wait")).content
