"""Rows for and from features: words in sentences and chats, where a feature is strongest, what a vector decodes to."""

from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.nn.functional import normalize

from sublim.activations.token_places import marked_rows
from sublim.core.errors import UserError
from sublim.features.config import ExamplesConfig, VectorFeaturesConfig, WordRowsConfig
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.models.files import write_json
from sublim.models.opening import load_tokenizer
from sublim.residual.vectors import read_vectors
from sublim.sae.autoencoder import load_sae
from sublim.traits.words import written


def word_rows(out: Path, config: WordRowsConfig, *, scratch: Path) -> dict[str, Any]:
    """Stage: writes rows.jsonl with each word in every frame: a sentence that ends with it, a question it answers."""
    rows: list[dict[str, Any]] = [
        {"text": frame.replace("{word}", word)}
        if config.context == "plain"
        else {"prompt": frame, "answer": written(word), "system": None}
        for frame, word in product(config.frames, config.words)
    ]
    return {"rows": write_jsonl(out / "rows.jsonl", ({"id": number, **row} for number, row in enumerate(rows)))}


def show_examples(
    out: Path, config: ExamplesConfig, *, scratch: Path, base: Path, contrast: Path, features: Path, rows: Path
) -> dict[str, Any]:
    """Stage: writes examples.json, the top features of a contrast with the rows in which each is strongest."""
    table = pl.read_parquet(contrast / "contrast.parquet").filter(pl.col("p").is_not_null())
    top = table.sort("rank").head(config.features)
    found = (
        pl.scan_parquet(features / f"features-{config.sae}-*.parquet")
        .filter(pl.col("feature").is_in(top["feature"].to_list()))
        .sort("value", "row", "position", descending=[True, False, False])
        .group_by("feature", "row", maintain_order=True)
        .first()
        .group_by("feature", maintain_order=True)
        .head(config.examples)
        .collect()
    )
    wanted = set(found["row"].to_list())
    texts = {number: row for number, row in enumerate(read_jsonl(rows / "rows.jsonl")) if number in wanted}
    tokenizer = load_tokenizer(base)
    shown: list[dict[str, Any]] = []
    for line in top.iter_rows(named=True):
        own = found.filter(pl.col("feature") == line["feature"]).sort("value", "row", descending=[True, False])
        examples = [
            {
                "row": each["row"],
                "value": each["value"],
                **window(tokenizer, texts[each["row"]], each["position"], config),
            }
            for each in own.iter_rows(named=True)
        ]
        shown.append({**line, "examples": examples})
    write_json(out / "examples.json", {"sae": config.sae, "features": shown})
    return {"features": len(shown)}


def window(tokenizer: Any, row: dict[str, Any], position: int | None, config: ExamplesConfig) -> dict[str, str]:
    """The text around a token; a row's answer, or its text, where the feature is a mean over tokens."""
    if position is None:
        return {"before": "", "token": row.get("answer", row.get("text", "")), "after": ""}
    [marked] = marked_rows(tokenizer, [row])
    before = marked.ids[max(0, position - config.around) : position]
    after = marked.ids[position + 1 : position + 1 + config.around]
    parts = {"before": before, "token": [marked.ids[position]], "after": after}
    return {name: str(tokenizer.decode(ids)) for name, ids in parts.items()}


def vector_features(
    out: Path, config: VectorFeaturesConfig, *, scratch: Path, sae: Path, vectors: Path
) -> dict[str, Any]:
    """Stage: writes vector_features.parquet: for each vector at the SAE's place the features whose decoder rows point
    its way, by cosine; a random vector's largest cosines, in the same table, are what chance gives."""
    loaded, found = load_sae(sae), read_vectors(vectors)
    own = {name: vector for name, vector in found.items() if vector.note.place == loaded.note.place}
    if not own:
        places = sorted({f"{vector.note.site}/{vector.note.layer}" for vector in found.values()})
        raise UserError(
            f"the SAE reads {loaded.note.name}, the vectors are for {', '.join(places)}: give those of its place"
        )
    if wide := next((len(vector.values) for vector in own.values() if len(vector.values) != loaded.note.d_in), None):
        raise UserError(
            f"the SAE is for a stream {loaded.note.d_in} wide, the vectors are {wide} wide: they are of another model"
        )
    decoder = normalize(loaded.sae.W_dec.detach().float(), dim=1)
    tables: list[pl.DataFrame] = []
    for name, vector in sorted(own.items()):
        values = vector.values - vector.values.mean() if loaded.note.centered else vector.values
        cosine = decoder @ normalize(values, dim=0)
        best = torch.argsort(cosine.abs(), descending=True, stable=True)[: config.top]
        tables.append(
            pl.DataFrame(
                {
                    "vector": [name] * len(best),
                    "rank": range(1, len(best) + 1),
                    "feature": pl.Series(best.tolist(), dtype=pl.UInt32),
                    "cosine": cosine[best].tolist(),
                    "random": [vector.note.source == "random"] * len(best),
                }
            )
        )
    pl.concat(tables).write_parquet(out / "vector_features.parquet")
    return {"vectors": len(own)}
