"""Rows for SAE features: words in sentences and chats, examples of features, and the features of steering vectors."""

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
    """Stage: writes rows.jsonl with each word in every frame, as the end of a sentence or the answer to a question."""
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
    """Stage: writes examples.json: the top features of a contrast, with the rows in which their values are largest."""
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
    """The text before, at and after a token. Without a position (means over tokens), the row's answer or text."""
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
    """Stage: writes vector_features.parquet: the features whose decoder rows have the largest cosines with each vector.

    Only vectors at the SAE's site and layer are used. Random vectors in the table show the cosines that chance gives.
    Raises UserError where no vector fits the SAE.
    """
    loaded, found = load_sae(sae), read_vectors(vectors)
    own = {name: vector for name, vector in found.items() if vector.note.place == loaded.note.place}
    if not own:
        places = sorted({f"{vector.note.site}/{vector.note.layer}" for vector in found.values()})
        raise UserError(
            f"the SAE reads {loaded.note.name}, the vectors are for {', '.join(places)}: give vectors for it"
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
