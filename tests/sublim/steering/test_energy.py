"""Controls of necessity: each told with how much of the student's change it holds, and some that hold as much."""

from pathlib import Path

import pytest
import torch

from flows.steering.necessity import NecessityShown, necessity_findings, necessity_rows, necessity_table, read_energies
from sublim.inference.config import HfBackend
from sublim.residual.edits import Edit, Steering, names_by_layer
from sublim.residual.vectors import read_vectors
from sublim.steering.config import DifferenceConfig
from sublim.steering.dose_curve import steering_curve, sweep
from sublim.steering.dose_curve_config import Curve, CurveConfig, SweepConfig
from sublim.steering.energy import change_directions, leading_components, read_change, share_along
from sublim.steering.energy_config import EnergyConfig, direction
from sublim.steering.means import difference_vectors, mean_activations
from tests.sublim.models.test_opening import write_adapter
from tests.sublim.steering.test_steering import QUESTIONS, WORDS, means, rows, run


def test_energies_of_orthogonal_directions_add_up_and_a_random_one_holds_next_to_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(400, 32, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.1, 32).double()
    change[:, 3] += 4
    own = torch.eye(32, dtype=torch.float64)[3]
    parts = list(leading_components(change, own, 40))
    assert len(parts) == 31  # what is left beside the vector itself
    assert share_along(change, own) + sum(share_along(change, part) for part in parts) == pytest.approx(1)
    assert max(abs(float(part @ own)) for part in parts) < 1e-12
    shares = [share_along(change, part) for part in parts]
    assert shares == sorted(shares, reverse=True)
    assert share_along(change, own) > 0.25
    random = torch.randn(200, 32, generator=generator, dtype=torch.float64)
    assert sum(share_along(change, each) for each in random) / 200 == pytest.approx(1 / 32, rel=0.2)
    assert share_along(torch.zeros(3, 32).double(), own) == 0


def test_controls_of_one_students_change_hold_what_is_told(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base, text = tiny_models["qwen2"], rows(tmp_path / "rows", ["1, 2", "33, 4", "5"])
    adapters = [write_adapter(tmp_path / f"adapter-{seed}", base, seed=seed) for seed in range(3)]
    read = [
        run(mean_activations, tmp_path / f"m{number}", means(), base=base, rows=text, weights=weights)
        for number, weights in enumerate((*adapters, None))
    ]
    student, control, wolf = (
        run(difference_vectors, tmp_path / f"v{number}", DifferenceConfig(random=2), target=side, control=read[3])
        for number, side in enumerate(read[:3])
    )
    config = EnergyConfig(layers=(0, 1), questions=tuple(QUESTIONS), word="owl", dtype="float32", attention="sdpa")
    out = run(
        change_directions,
        tmp_path / "out",
        config,
        base=base,
        weights=adapters[0],
        vectors=student,
        controls={"v_control": control, "teacher-wolf": wolf},
    )
    found, vectors = read_energies(out), read_vectors(out)
    assert [row.direction for row in found.rows if row.layer == 1] == [
        "v_student", "v_control", "teacher-wolf", "component-0", "component-1", "component-2",
        "random-0", "random-1", "components",
    ]  # fmt: skip
    assert names_by_layer(out, (0, 1)) == {0: "resid_post/0/mean_answer", 1: "resid_post/1/mean_answer"}
    change = read_change(config, base, adapters[0]).double()
    assert change.shape[1] == found.tokens
    for layer in (0, 1):
        own = {row.direction: row for row in found.rows if row.layer == layer}
        for row in own.values():
            assert row.direction in ("components", direction(row.vectors[0]))
            parts = sum(share_along(change[layer], vectors[name].values.double()) for name in row.vectors)
            assert row.share == pytest.approx(parts)
        # Together as much as v_student, and without the last of them less.
        assert own["components"].share >= own["v_student"].share
        last = vectors[own["components"].vectors[-1]].values.double()
        assert own["components"].share - share_along(change[layer], last) < own["v_student"].share
        given = read_vectors(control)[f"resid_post/{layer}/mean_answer"]
        assert torch.equal(vectors[own["v_control"].vectors[0]].values, given.values)
    points = tuple(Steering(edits=tuple(Edit(vector=v, kind="replace") for v in row.vectors)) for row in found.rows)
    asked = SweepConfig(
        questions=QUESTIONS, words=WORDS, backend=HfBackend(dtype="float32", attention="sdpa"), points=points
    )
    swept = run(sweep, tmp_path / "sweep", asked, base=base, vectors=out, weights=adapters[0])
    curve = run(steering_curve, tmp_path / "curve", CurveConfig(target="owl", words=WORDS), swept=swept)
    told = necessity_rows(out, Curve.model_validate_json((curve / "curve.json").read_text()).points)
    assert [(row.layer, row.direction, row.share) for row in told] == [
        (row.layer, row.direction, row.share) for row in found.rows
    ]
    assert all(row.estimate for row in told)
    assert "no control of equal energy" in "\n".join(necessity_findings(0, told))
    assert len(necessity_table("t", told).rows) == 2 * 8


def test_a_vector_counts_beside_controls_that_hold_as_much_and_not_beside_random_ones() -> None:
    def row(layer: int, name: str, share: float, estimate: float | None) -> NecessityShown:
        known = {"layer": layer, "direction": name, "share": share, "cosine": 0.1, "low": None, "high": None}
        return NecessityShown.model_validate({**known, "estimate": estimate, "reason": "lost" * (estimate is None)})

    told = [
        row(0, "v_student", 0.4, -0.5), row(0, "v_control", 0.3, -0.6), row(0, "random-0", 0.001, 0.0),
        row(1, "v_student", 0.4, -0.3), row(1, "components", 0.4, -0.1), row(1, "random-0", 0.001, -0.9),
        row(2, "v_student", 0.4, -0.2), row(2, "v_control", 0.1, -0.8), row(2, "components", 0.5, None),
    ]  # fmt: skip
    lost, most, beyond = necessity_findings(0, told)
    assert "1 could not be measured: lost" in lost
    assert "does most at layer 0, of 3 layers: -0.50 nats (40.0 % of the student's change)" in most.replace("−", "-")
    assert "v_control -0.60 nats (30.0 %" in most.replace("−", "-")
    assert "at 1 of 2 layers that have such a control" in beyond
