"""Curves of several arms: each is named at its end, and names do not lie on each other."""

from xml.etree import ElementTree

import pytest

from sublim.plots.charts import Curve, Point, curves_plot
from sublim.plots.svg import LABEL_DISTANCE, spread


def test_every_curve_is_named_and_has_its_points() -> None:
    main = Curve("teacher", [Point(16, 0.1, 0.0, 0.2, ()), Point(64, 0.5, 0.3, 0.7, ())], strong=True)
    other = Curve("marginals <b>", [Point(16, -0.1, None, None, ()), Point(64, 0.45, 0.1, 0.8, ())])
    root = ElementTree.fromstring(curves_plot([main, other], unit="nats", title="doses"))
    words = [found.text for found in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"teacher", "marginals <b>", "16", "64"} <= {*words}
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 4
    assert sum("whisker" in (found.get("class") or "") for found in root.iter("{http://www.w3.org/2000/svg}line")) == 3


def test_names_keep_their_distance_and_their_order() -> None:
    assert spread([100.0, 40.0, 101.0]) == pytest.approx([100.0, 40.0, 100.0 + LABEL_DISTANCE])


def test_one_checkpoint_alone_can_be_drawn() -> None:
    assert "<svg" in curves_plot([Curve("teacher", [Point(16, 0.0, 0.0, 0.0, ())])], unit="nats", title="one")
