"""Probes: splits without leaks, batches that fit as each probe alone would, and results against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score
from torch import Tensor

from sublim.activations.read import SCHEMA
from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.files.tensor_files import write_tensors
from sublim.probes.config import AdamFit, FullFit, ProbesConfig, ProbeSummaries
from sublim.probes.data import Rows, read_class, shuffled, split, together
from sublim.probes.fit import Problems, fit, scores, standards
from sublim.probes.fit_probes import fit_probes
from sublim.probes.metrics import METRICS, Judged, metrics
from sublim.probes.summary import per_prompt


def payload(folder: Path, values: dict[int, Tensor], ids: list[int] | None = None) -> Path:
    """Activations as the stage keeps them, in two shards, with rows of another kind between."""
    count = len(next(iter(values.values())))
    ids = ids or list(range(count))
    folder.mkdir(parents=True)
    for number, part in enumerate((range(count // 3), range(count // 3, count))):
        lines, places = list[Any](), list[int]()
        for row in part:
            lines.append((row, ids[row], "mean_prompt", None, None, 5, 2 * len(places)))
            lines.append((row, ids[row], "mean_answer", None, None, 5, 2 * len(places) + 1))
            places.append(row)
        table = pl.DataFrame(lines, schema=SCHEMA, orient="row", strict=False)
        table.write_parquet(folder / f"index-{number:05d}.parquet")
        tensors = {f"resid_post/{layer}": torch.stack([1e3 + 0 * x, x], 1).flatten(0, 1)
                   for layer, value in values.items() for x in (value[places],)}  # fmt: skip
        write_tensors(folder / f"activations-{number:05d}.safetensors", tensors)
    return folder


def classes(seed: int = 0, n: int = 200, d: int = 12, shift: float = 0.0) -> dict[int, Tensor]:
    """Layer 3 is noise; in layer 7 one feature is moved by `shift`."""
    generator = torch.Generator().manual_seed(seed)
    noise, planted = torch.randn(2, n, d, generator=generator)
    planted[:, 4] += shift
    return {3: noise, 7: planted}


def run(out: Path, config: ProbesConfig, **inputs: Any) -> tuple[dict[str, Any], pl.DataFrame, ProbeSummaries]:
    out.mkdir()
    notes = fit_probes(out, config, scratch=out, **inputs)
    summary = ProbeSummaries.model_validate_json((out / "summary.json").read_text())
    return notes, pl.read_parquet(out / "probes.parquet"), summary


def of(summary: ProbeSummaries, layer: int, metric: str, target: str = "target") -> Any:
    [row] = [row for row in summary.rows if (row.layer, row.metric, row.target) == (layer, metric, target)]
    return row


def rows_of(tmp_path: Path, shift: float, n: int = 200) -> Rows:
    config = ProbesConfig()
    zero = read_class(payload(tmp_path / "c", classes(0, n)), config)
    one = read_class(payload(tmp_path / "t", classes(1, n, shift=shift)), config)
    return together([zero, one], {"owl": [0, 1]})[0]


def test_a_planted_direction_is_found_and_noise_is_not(tmp_path: Path) -> None:
    """The Bayes error of two unit normals 3 apart is Φ(-1.5) = .067: an accuracy of .933."""
    control = payload(tmp_path / "c", classes(0, 400))
    target = payload(tmp_path / "t", classes(1, 400, shift=3.0))
    notes, table, summary = run(tmp_path / "o", ProbesConfig(fit=FullFit()), target=target, control=control)
    assert set(table["layer"]) == {-1, 3, 7}
    assert table.columns == ["layer", "target", "seed", "shuffled", *METRICS, "n"]
    assert len(table) == 3 * 5 * 2
    assert set(table["n"]) == {160}
    assert notes["identical"] == {"target": 0.0}
    assert of(summary, 7, "accuracy").estimate == pytest.approx(0.933, abs=0.03)
    assert of(summary, 7, "accuracy").low > 0.88
    assert of(summary, 7, "selectivity").low > 0.3
    assert of(summary, 7, "auc").low > 0.95
    assert of(summary, -1, "accuracy").low > 0.85
    noise = of(summary, 3, "accuracy")
    assert noise.low < 0.5 < noise.high
    null = of(summary, 3, "selectivity")
    assert null.low < 0 < null.high
    mixed = of(summary, 7, "shuffled")
    assert mixed.low < 0.5 < mixed.high
    assert of(summary, 7, "accuracy").chance == 0.5


def test_the_same_bytes_whenever_and_however_many_at_once(tmp_path: Path) -> None:
    inputs = {
        "target": payload(tmp_path / "t", classes(1, 40, shift=2)),
        "control": payload(tmp_path / "c", classes(0, 40)),
    }
    config = ProbesConfig(seeds=(0, 1), fit=AdamFit(epochs=3))
    run(tmp_path / "a", config, **inputs)
    run(tmp_path / "b", config, **inputs)
    assert digest_directory(tmp_path / "a") == digest_directory(tmp_path / "b")
    _, one, _ = run(tmp_path / "one", config.model_copy(update={"memory_gib": 1e-7}), **inputs)
    assert one.equals(pl.read_parquet(tmp_path / "a" / "probes.parquet"))


def test_both_answers_to_a_prompt_are_on_one_side(tmp_path: Path) -> None:
    """The earlier probes split rows, so that a prompt's other answer was trained on."""
    rows, config = rows_of(tmp_path, 0.0), ProbesConfig()
    for seed in range(5):
        parts = split(rows, config, np.random.default_rng(seed))
        prompts = [set(rows.prompts[part]) for part in parts]
        assert not prompts[0] & prompts[1]
        assert not prompts[2] & (prompts[0] | prompts[1])
        assert [len(part) for part in parts] == [240, 80, 80]
        assert [rows.labels[part].mean() for part in parts] == [0.5, 0.5, 0.5]
        assert sorted(np.concatenate(parts)) == list(range(400))


def test_prompts_that_one_class_alone_answered_are_spread_evenly() -> None:
    labels = np.array([0] * 50 + [1] * 100)
    prompts = np.concatenate([np.arange(50), np.arange(100)])
    rows = Rows("owl", 2, torch.zeros(1, 150, 2), np.arange(150), labels, prompts, [0])
    parts = split(rows, ProbesConfig(), np.random.default_rng(0))
    assert [(labels[part] == 0).sum() for part in parts] == [30, 10, 10]
    assert [(labels[part] == 1).sum() for part in parts] == [60, 20, 20]


def test_several_answers_to_a_prompt_share_its_side(tmp_path: Path) -> None:
    config = ProbesConfig(answers=4)
    read = [read_class(payload(tmp_path / name, classes(0, 80)), config) for name in "ct"]
    [rows] = together(read, {"owl": [0, 1]})
    assert sorted(set(rows.prompts)) == list(range(20))


def problems_of(rows: Rows, config: ProbesConfig, seeds: tuple[int, ...]) -> Problems:
    parts = [split(rows, config, np.random.default_rng([seed, 0])) for seed in seeds]
    epochs = config.fit.epochs if isinstance(config.fit, AdamFit) else 0

    def stack(place: int) -> Tensor:
        return torch.from_numpy(np.stack([one[place] for one in parts]))

    orders = [[np.random.default_rng(s).permutation(one.train) for s in range(epochs)] for one in parts]
    return Problems(
        rows.values.double(),
        torch.tensor([1] * len(seeds)),
        torch.from_numpy(np.stack([rows.labels] * len(seeds))),
        stack(0),
        stack(1),
        stack(2),
        torch.from_numpy(np.array(orders)) if epochs else torch.zeros(len(seeds), 0, 0, dtype=torch.long),
        rows.classes,
    )


def test_standardisation_sees_the_training_rows_alone(tmp_path: Path) -> None:
    """Rows of validation and test may be anything: neither the scale nor the fit moves."""
    rows, config = rows_of(tmp_path, 1.0), ProbesConfig(fit=AdamFit(epochs=2))
    problems = problems_of(rows, config, (0,))
    values = problems.x.clone()
    values[:, torch.cat([problems.validation[0], problems.test[0]])] *= 1e3
    spoiled = problems._replace(x=values)
    for clean, other in zip(standards(problems), standards(spoiled), strict=True):
        assert torch.equal(clean, other)
    by_hand = problems.x[1, problems.train[0]]
    torch.testing.assert_close(standards(problems)[0][0], by_hand.mean(0))
    without_test = problems.x.clone()
    without_test[:, problems.test[0]] = 1e3
    assert torch.equal(fit(problems, config.fit).weight, fit(problems._replace(x=without_test), config.fit).weight)


def test_the_epoch_is_chosen_by_the_validation_rows_and_not_by_the_test(tmp_path: Path) -> None:
    """With inverted labels an early epoch is best. This matters for validation rows and not for test rows."""
    rows, how = rows_of(tmp_path, 3.0), AdamFit(epochs=4, lr=1e-2)
    problems = problems_of(rows, ProbesConfig(fit=how), (0,))
    chosen = fit(problems, how).weight
    for part, same in ((problems.test, True), (problems.validation, False)):
        labels = problems.labels.clone()
        labels[0, part[0]] = 1 - labels[0, part[0]]
        assert torch.equal(fit(problems._replace(labels=labels), how).weight, chosen) == same


def test_full_fits_are_scikit_learn_s(tmp_path: Path) -> None:
    rows, how = rows_of(tmp_path, 1.0), FullFit(l2=0.02)
    problems = problems_of(rows, ProbesConfig(fit=how), (0, 1, 2))
    fitted = fit(problems, how)
    for p in range(3):
        train = problems.train[p]
        x = ((problems.x[1, train] - fitted.mean[p]) / fitted.scale[p]).numpy()
        theirs = LogisticRegression(C=1 / (how.l2 * len(train)), tol=1e-10, max_iter=10_000).fit(x, rows.labels[train])
        assert fitted.weight[p, :, 0].numpy() == pytest.approx(theirs.coef_[0], abs=1e-5)
        assert float(fitted.bias[p, 0]) == pytest.approx(float(theirs.intercept_[0]), abs=1e-5)


def test_full_fits_of_several_classes_are_scikit_learn_s(tmp_path: Path) -> None:
    config, how = ProbesConfig(), FullFit(l2=0.05)
    found = [read_class(payload(tmp_path / str(k), classes(k, 100, shift=float(k))), config) for k in range(3)]
    [rows] = together(found, {"multiclass": [0, 1, 2]})
    problems = problems_of(rows, ProbesConfig(fit=how), (0,))
    fitted = fit(problems, how)
    train = problems.train[0]
    x = ((problems.x[1, train] - fitted.mean[0]) / fitted.scale[0]).numpy()
    theirs = LogisticRegression(C=1 / (how.l2 * len(train)), tol=1e-10, max_iter=10_000).fit(x, rows.labels[train])
    assert fitted.weight[0].T.numpy() == pytest.approx(theirs.coef_, abs=1e-4)


def test_short_training_comes_close_to_the_minimum(tmp_path: Path) -> None:
    """The protocol's 20 epochs are short for few rows: each weight moves by at most lr × steps. 2,000 prompts do."""
    rows = rows_of(tmp_path, 2.0, n=2_000)
    adam, full = (problems_of(rows, ProbesConfig(fit=how), (0, 1, 2)) for how in (AdamFit(), FullFit()))

    def accuracy(problems: Problems, how: AdamFit | FullFit) -> float:
        said = scores(problems, fit(problems, how), problems.test)[..., 0] > 0
        return float((said == problems.labels.gather(1, problems.test).bool()).double().mean())

    assert accuracy(adam, AdamFit()) == pytest.approx(accuracy(full, FullFit()), abs=0.03)


def test_a_batch_fits_each_probe_as_alone(tmp_path: Path) -> None:
    rows, config = rows_of(tmp_path, 1.0), ProbesConfig(fit=AdamFit(epochs=3))
    whole = fit(problems_of(rows, config, (0, 1, 2)), config.fit)
    alone = fit(problems_of(rows, config, (1,)), config.fit)
    torch.testing.assert_close(whole.weight[1], alone.weight[0], rtol=1e-9, atol=1e-12)


def test_shuffled_labels_keep_their_shares_within_each_part(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 0.0)
    parts = split(rows, ProbesConfig(), np.random.default_rng(0))
    mixed = shuffled(rows.labels, parts, np.random.default_rng(1))
    assert (mixed != rows.labels).mean() == pytest.approx(0.5, abs=0.1)
    for part in parts:
        assert mixed[part].sum() == rows.labels[part].sum()


def test_metrics_are_scikit_learn_s_and_weights_count_rows() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    column = np.round(rng.normal(size=60) + labels, 1)  # with ties
    tested = Judged(np.stack([np.zeros(60), column], 1), labels, np.arange(60))
    found = {name: float(values[0]) for name, values in metrics(tested).items()}
    said = column > 0
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, said))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, column))
    assert found["precision"] == pytest.approx(precision_score(labels, said))
    assert found["recall"] == pytest.approx(recall_score(labels, said))
    assert found["f1"] == pytest.approx(f1_score(labels, said))
    weights = rng.integers(0, 3, 60)
    chosen = np.repeat(np.arange(60), weights)
    repeated = metrics(Judged(tested.scores[chosen], labels[chosen], chosen))
    weighted = metrics(tested, weights[None].astype(float))
    assert {k: float(v[0]) for k, v in weighted.items()} == pytest.approx({k: float(v[0]) for k, v in repeated.items()})
    many = rng.integers(0, 3, 60)
    three = Judged(rng.normal(size=(60, 3)), many, np.arange(60))
    assert float(metrics(three)["f1"][0]) == pytest.approx(f1_score(many, three.scores.argmax(1), average="macro"))


def test_a_prompt_tested_twice_is_one_unit() -> None:
    one = Judged(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), np.array([5, 6]))
    other = Judged(np.array([[0.0, 1.0]]), np.array([0]), np.array([5]))
    assert per_prompt([one, other]) == {5: 0.5, 6: 0.0}


def test_several_targets_are_also_told_apart_at_once(tmp_path: Path) -> None:
    control = payload(tmp_path / "c", classes(0, 100))
    targets = {name: payload(tmp_path / name, classes(k, 100, shift=4.0 * k)) for k, name in ((1, "owl"), (2, "wolf"))}
    config = ProbesConfig(seeds=(0, 1), fit=FullFit())
    _, table, summary = run(tmp_path / "o", config, target=targets, control=control)
    assert set(table["target"]) == {"owl", "wolf", "multiclass"}
    assert of(summary, 7, "accuracy", "multiclass").low > 0.8
    assert of(summary, 7, "accuracy", "multiclass").chance == pytest.approx(1 / 3)


def test_targets_are_fitted_in_one_batch_and_each_as_if_it_were_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch of single layers and one of all layers, whatever the number of targets and seeds."""
    control = payload(tmp_path / "c", classes(0, 40))
    targets = {name: payload(tmp_path / name, classes(k, 40, shift=2.0)) for k, name in ((1, "owl"), (2, "wolf"))}
    config = ProbesConfig(seeds=(0, 1), fit=AdamFit(epochs=3), multiclass=False)
    batches: list[int] = []

    def counted(problems: Problems, how: Any) -> Any:
        batches.append(len(problems.source))
        return fit(problems, how)

    monkeypatch.setattr("sublim.probes.fit_probes.fit", counted)
    _, both, _ = run(tmp_path / "both", config, target=targets, control=control)
    assert batches == [2 * 2 * 2 * 2, 2 * 2 * 2]
    for name, path in targets.items():
        _, alone, _ = run(tmp_path / f"alone-{name}", config, target={name: path}, control=control)
        assert alone.equals(both.filter(pl.col("target") == name))


def test_prompts_with_unequal_numbers_of_answers_are_fitted_all_the_same(tmp_path: Path) -> None:
    """A filter leaves some of a prompt's answers: then the seeds' splits have other numbers of rows."""
    kept = [i for i in range(90) if i % 7 and i % 11 != 3]
    sides = {name: payload(tmp_path / name, classes(k, len(kept), shift=2.0 * k), kept) for k, name in enumerate("ct")}
    config = ProbesConfig(answers=3, seeds=(0, 1, 2, 3), fit=AdamFit(epochs=2))
    _, table, _ = run(tmp_path / "o", config, target=sides["t"], control=sides["c"])
    assert table["n"].n_unique() > 1
    assert len(table) == 3 * 4 * 2


def test_what_cannot_be_probed_is_refused_in_words(tmp_path: Path) -> None:
    control, other = payload(tmp_path / "c", classes()), payload(tmp_path / "t", {3: torch.zeros(9, 2)})
    with pytest.raises(UserError, match="different layers"):
        run(tmp_path / "a", ProbesConfig(), target=other, control=control)
    with pytest.raises(UserError, match="no mlp_out was read"):
        run(tmp_path / "b", ProbesConfig(site="mlp_out"), target=control, control=control)
    with pytest.raises(UserError, match="too few to split"):
        run(
            tmp_path / "d",
            ProbesConfig(),
            target=payload(tmp_path / "u", classes(n=2)),
            control=payload(tmp_path / "v", classes(n=2)),
        )


def test_intervals_on_noise_cover_chance_as_often_as_they_say(tmp_path: Path) -> None:
    """100 layers of noise, each a study of its own: about 95 of the intervals hold the truth, and no fewer than 89
    (below which 95 % would fall once in 100 times)."""
    generator = torch.Generator().manual_seed(3)
    sides = [{layer: torch.randn(100, 6, generator=generator) for layer in range(100)} for _ in range(2)]
    inputs = {"target": payload(tmp_path / "t", sides[0]), "control": payload(tmp_path / "c", sides[1])}
    config = ProbesConfig(together=False, fit=FullFit(l2=0.1), draws=400)
    _, _, summary = run(tmp_path / "o", config, **inputs)
    for metric, truth in (("accuracy", 0.5), ("auc", 0.5), ("selectivity", 0.0)):
        held = sum(row.low <= truth <= row.high for row in summary.rows if row.metric == metric)
        print(metric, held)
        assert held >= 89, metric
