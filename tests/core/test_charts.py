"""Charts: values land where the axes say, and the drawing is well-formed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from gdfq_export.charts import Axis, Line, Mark, chart, short, smoothed


def drawing(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)


def test_an_axis_places_its_ends_and_its_middle() -> None:
    linear, log = Axis(0.0, 10.0, 100.0, 300.0), Axis(0.01, 100.0, 200.0, 0.0, log=True)
    assert [linear.place(value) for value in (0, 5, 10)] == [100, 200, 300]
    assert [log.place(value) for value in (0.01, 1, 100)] == pytest.approx([200, 100, 0])


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0.0, 10.0, 0, 1), [0, 2, 4, 6, 8, 10]),
        (Axis(213.0, 349.0, 0, 1), [250, 300]),
        (Axis(0.0005, 0.3, 0, 1, log=True), [0.001, 0.01, 0.1]),
    ],
)
def test_ticks_are_round_values_within_the_axis(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12300, "12,300"), (0.0021, "0.0021"), (3.14159, "3.14"), (float("nan"), "nan")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_a_chart_is_well_formed_and_escapes_its_labels() -> None:
    html = chart(
        [Line("a < b", [(0, 1), (1, 2)]), Line("c", [(0, 2), (1, 1)])],
        [Mark("4 & 8", 0.5, 1.5, strong=True)],
        x_label="x",
        y_label="<y>",
        limit=("budget", 0.7),
    )
    root = drawing(html)
    texts = [element.text for element in root.iter("text")]
    assert {"<y>", "x", "4 & 8", "budget"} <= set(texts)
    assert len(list(root.iter("polyline"))) == 2
    assert "a < b" in "".join(root.itertext())


def test_points_stay_within_the_frame_even_at_zero_on_a_logarithmic_axis() -> None:
    (line,) = drawing(chart([Line("", [(1, 0.0), (2, 0.01), (3, 1.0)])], x_label="x", y_label="y", log_y=True)).iter(
        "polyline"
    )
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert all(0 <= x <= 760 and 0 <= y <= 330 for x, y in points)
    assert points[0][1] > points[1][1] > points[2][1]  # down the page is towards zero


def test_a_constant_line_is_drawn() -> None:
    assert drawing(chart([Line("", [(1, 2.0), (1, 2.0)])], x_label="x", y_label="y")) is not None


def test_smoothing_is_a_running_mean_with_a_point_for_each_step() -> None:
    values = [float(index % 2) for index in range(200)]
    points = smoothed(values)
    assert [x for x, _ in points] == [float(step) for step in range(1, 201)]
    assert all(0.3 < y < 0.7 for _, y in points[10:])
