import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.report.figures import (
    Axes,
    Point,
    Series,
    _range,
    _ticks,
    bar_chart,
    histogram,
    legend,
    line_chart,
    scatter_chart,
)

ANY = Interval(0.5, 0.4, 0.7)


def parse(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def of_class(figure: str, name: str) -> list[ElementTree.Element]:
    return [e for e in parse(figure).iter() if name in e.get("class", "").split()]


def numbers(text: str | None) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text or "")]


def test_a_line_goes_through_its_points():
    chart = line_chart("Height, m", "time, s", [Series("a", [0, 1, 2], [0.0, 2.0, 1.0])])
    axes = Axes((0, 2), (0, 2.1))
    expected = [value for x, y in ((0, 0), (1, 2), (2, 1)) for value in (axes.at_x(x), axes.at_y(y))]
    assert numbers(of_class(chart, "line")[0].get("d")) == pytest.approx(expected, abs=0.06)
    assert len(of_class(chart, "marker")) == 3


def test_the_greatest_value_is_at_the_top_and_the_least_at_the_bottom():
    axes = Axes((0, 10), (0, 1))
    assert axes.at_y(1) < axes.at_y(0) and axes.at_x(10) > axes.at_x(0)


def test_what_is_not_there_interrupts_the_line_and_has_no_mark():
    chart = line_chart("Height", "time", [Series("a", [0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0])])
    assert of_class(chart, "line")[0].get("d", "").count("M") == 2
    assert len(of_class(chart, "marker")) == 3


def test_a_band_has_both_edges():
    series = Series("a", [0, 1], [1.0, 1.0], low=[0.5, math.nan], high=[1.5, math.nan])
    chart = line_chart("Height", "time", [series])
    assert len(numbers(of_class(chart, "band")[0].get("points"))) == 4


def test_a_chart_without_values_can_be_drawn():
    chart = line_chart("Height", "time", [Series("a", [1], [math.nan])])
    assert not of_class(chart, "marker")


def test_a_point_has_intervals_in_both_directions_and_says_so():
    chart = scatter_chart("Chart", "jerk", "success", [Point("mine", ANY, Interval(2.0, 1.0, 3.0))])
    assert len(of_class(chart, "whisker")) == 1
    said = parse(chart).findall(".//title")[0].text
    assert said == "mine: jerk 0.5 (95 % 0.4 to 0.7), success 2 (95 % 1 to 3)"


def test_bars_are_as_long_as_their_values():
    chart = bar_chart("Bars", "rate", {"task": {"a": Interval(0.25, 0.2, 0.3), "b": Interval(0.5, 0.4, 0.6)}})
    widths = [float(bar.get("width", "")) for bar in of_class(chart, "bar")]
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.01)


def test_a_bar_that_was_not_measured_is_not_drawn_as_0():
    chart = bar_chart("Bars", "rate", {"task": {"a": ANY, "b": None}})
    assert len(of_class(chart, "bar")) == 1
    assert "not measured" in chart


def test_a_histogram_counts_every_finite_value_once():
    values = [0.0, 0.1, 0.1, 5.0, math.nan]
    said = [title.text or "" for title in parse(histogram("H", "jerk", values)).findall(".//title")]
    assert sum(int(text.split()[0]) for text in said) == 4


def test_series_differ_in_more_than_their_colour():
    shown = legend(["a", "b", "c", "d", "e", "f"])
    markers = [e.get("d") for e in parse(shown).iter("path") if "marker" in e.get("class", "")]
    assert len(set(markers)) == 6


def test_a_figure_says_what_it_shows_to_those_who_do_not_see_it():
    chart = line_chart("Height, m", "time, s", [Series("a", [0], [1.0])])
    drawn = next(parse(chart).iter("svg"))
    assert drawn.get("role") == "img" and drawn.get("aria-label") == "Height, m: 1 line over time, s"


def test_labels_are_escaped():
    evil = "<script>x</script>"
    charts = [
        line_chart(evil, evil, [Series(evil, [0], [1.0])], marks=[(0.0, evil)]),
        scatter_chart(evil, evil, evil, [Point(evil, ANY, ANY)]),
        bar_chart(evil, evil, {evil: {evil: ANY}}),
        histogram(evil, evil, [1.0]),
        legend([evil]),
    ]
    assert not any("<script" in chart for chart in charts)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 8))
def test_ticks_are_a_few_round_numbers_within_the_range(low: float, width: float, most: int):
    high = low + width
    ticks = _ticks(low, high, most)
    assert 1 <= len(ticks) <= most + 1
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_whole_ticks_are_whole():
    assert _ticks(1, 3, 6, whole=True) == [1, 2, 3]


@given(st.lists(st.one_of(st.floats(-1e9, 1e9), st.just(math.nan)), max_size=5))
def test_a_range_is_never_empty(values: list[float]):
    low, high = _range(values)
    assert low < high
