"""Annotation: which features of an SAE are about animals, numbers, opinion, or none of these?

    sublim run annotate --preset quickstart                                   # 48 descriptions, the bundled model
    sublim run annotate --preset gemma-scope --set 'features=[9_12001, 20_431]'
    sublim run annotate --preset quickstart --set 'described=[]' --set table=my-labels.parquet
    python -m flows.annotate --preset quickstart

Descriptions come from Neuronpedia's public bucket, from a Parquet of labels or from the settings; any sampler sorts
them. Where a person's own categories are given, the model's agreement with them is reported with its interval.
"""

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from flows.annotate_config import AnnotateFlowConfig
from flows.pipeline_plan import check_machine, check_model
from flows.runs import Run, recorded
from flows.settings import build, load_preset, merge
from flows.toy_publish import publish_toy
from sublim.annotate_config import DescribedFeature
from sublim.errors import UserError
from sublim.manifest import Artifact
from sublim.model_config import PrepareModelConfig
from sublim.stats import wilson
from sublim.toy_report import Table, ToyReport, bounded
from tasks.labels import annotate as annotate_stage
from tasks.labels import import_labels
from tasks.pipeline import prepare_model

UNREADABLE = "(unreadable)"


class Agreement(NamedTuple):
    """How often the model says what a person said."""

    right: int
    n: int
    confusion: dict[tuple[str, str], int]
    """By (person's category, model's)."""


def run_name() -> str:
    """How the run is called in the UI."""
    return f"annotate · {flow_run.get_parameters()['preset']}"


def load_config(preset: str, settings: dict[str, Any] | None) -> AnnotateFlowConfig:
    """The config of a run from its parameters."""
    return build(AnnotateFlowConfig, merge(load_preset("annotate", preset), settings or {}))


def check(config: AnnotateFlowConfig) -> None:
    """Raises UserError for whatever can be known to go wrong: the machine, the model, the user's table."""
    check_machine(config.gpu_memory_gib)
    if config.annotate.resolved().needs_base:
        check_model(config.model)
    if config.table:
        read_table(config.table)


@flow(name="annotate", flow_run_name=run_name)
def annotate(preset: str = "quickstart", settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Sorts descriptions of features into animals, numbers, opinion and none.

    Args:
        preset: Settings to start from: quickstart, gemma-scope, or the path of a YAML file.
        settings: Values laid over the preset's, as a tree.
    """
    config = load_config(preset, settings)
    check(config)
    with recorded("annotate", preset, "") as run:
        return publish(run, config, conduct(config))


def conduct(config: AnnotateFlowConfig) -> Artifact:
    """Fetches the labels that are asked for and has everything sorted."""
    layers = sorted({int(name.partition("_")[0]) for name in config.features})
    labels = {
        str(layer): import_labels(
            config.labels.model_copy(update={"source": config.source.replace("{layer}", str(layer))}),
            label=f"layer {layer}",
        )
        for layer in layers
    }
    given = [*config.annotate.features, *described(config)]
    asking = config.annotate.model_copy(update={"features": tuple(given), "only": config.features})
    needed = asking.resolved().needs_base
    base = prepare_model(PrepareModelConfig(source=config.model)) if needed else None
    return annotate_stage(asking, labels=labels or None, base=base)


def described(config: AnnotateFlowConfig) -> list[DescribedFeature]:
    """The descriptions of the settings and of the user's table."""
    found = [
        DescribedFeature(feature=number if each.feature is None else each.feature, **_text(each))
        for number, each in enumerate(config.described)
    ]
    return found + (read_table(config.table) if config.table else [])


def _text(each: Any) -> dict[str, Any]:
    return {"layer": each.layer, "description": each.description}


def read_table(path: str) -> list[DescribedFeature]:
    """The chosen labels of a Parquet. Raises UserError for one that is none of labels."""
    try:
        table = pl.read_parquet(Path(path).expanduser())
    except (OSError, pl.exceptions.ComputeError) as error:
        raise UserError(f"{path} is no Parquet file that can be read ({error})") from error
    if missing := {"feature", "description"} - set(table.columns):
        raise UserError(f"{path} has no column {sorted(missing)[0]!r}: it needs feature and description")
    if "chosen" in table.columns:
        table = table.filter("chosen")
    layer = pl.col("layer") if "layer" in table.columns else pl.lit(None, dtype=pl.Int64).alias("layer")
    lines = table.select("feature", layer, "description").iter_rows(named=True)
    return [DescribedFeature.model_validate(line) for line in lines]


def agreement(config: AnnotateFlowConfig, table: pl.DataFrame) -> Agreement | None:
    """The model against a person, for the descriptions whose category is known; unreadable answers don't agree."""
    known = {each.description: each.known for each in config.described if each.known is not None}
    if not known:
        return None
    pairs = [
        (known[description], category or UNREADABLE)
        for description, category in table.select("description", "category").iter_rows()
        if description in known
    ]
    return Agreement(sum(a == b for a, b in pairs), len(pairs), dict(Counter(pairs)))


def publish(run: Run, config: AnnotateFlowConfig, annotated: Artifact) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    path = run.store.payload(annotated) / "annotations.parquet"
    table = pl.read_parquet(path)
    shutil.copyfile(path, run.folder / path.name)
    categories = list(config.annotate.categories)
    said = table["category"].to_list()
    counts = {name: said.count(name) for name in categories}
    agreed = agreement(config, table)
    lines = [f"{', '.join(f'{name} {count}' for name, count in counts.items())} of {len(said)} descriptions"]
    lines.append(f"{said.count(None)} answers could not be read and are in no category")
    tables = list[Table]()
    accuracy: dict[str, Any] | None = None
    if agreed is not None:
        share = wilson(agreed.right, agreed.n)
        accuracy = {"estimate": share.estimate, "low": share.low, "high": share.high, "n": agreed.n}
        lines.append(
            f"agrees with a person on {agreed.right} of {agreed.n}: {bounded(share.estimate, share.low, share.high)} "
            "(95 %, for descriptions like these)"
        )
        tables.append(_confusion(agreed, categories))
    rows = [[str(cell if cell is not None else "") for cell in row] for row in table.iter_rows()]
    tables.append(Table("Every description", table.columns, rows))
    shown = ToyReport(
        title=f"Annotation: {config.about or run.preset}",
        question="Which descriptions of features are about animals, numbers or opinion?",
        findings=lines,
        tables=tables,
        figures=[],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    create_table_artifact(table.to_dicts(), key="annotations", description=shown.title)
    return {
        **publish_toy(run, shown),
        "annotations": str(run.folder / path.name),
        "counts": counts,
        "unreadable": said.count(None),
        "accuracy": accuracy,
        "findings": lines,
    }


def _confusion(agreed: Agreement, categories: list[str]) -> Table:
    columns = [*categories, UNREADABLE]
    rows = [[name, *(str(agreed.confusion.get((name, said), 0)) for said in columns)] for name in categories]
    return Table("A person's category (lines) and the model's", ["", *columns], rows)


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    return "\n".join([*outcome["findings"], f"report: {outcome['report']}"])


if __name__ == "__main__":
    from flows.__main__ import main

    sys.exit(main(["run", "annotate", *sys.argv[1:]]))
