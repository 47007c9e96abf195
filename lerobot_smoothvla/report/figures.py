"""Charts as inline SVG: lines with bands, points with intervals, bars, histograms.

They are drawn `_WIDTH` units wide and scale with the page, so that their text is legible on a telephone, and
take their colours from the page's style sheet. A series is told from the others by dash and marker, too. NaN
is a value that is not there. Every mark has a title: browsers show it at the pointer, screen readers read it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lerobot_smoothvla.evaluation.statistics import Interval
from lerobot_smoothvla.report.markup import Html, join, tag

_WIDTH, _HEIGHT = 360.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 36.0
_BAR, _ROW_GAP = 13.0, 10.0
_STYLES = 6
"""Colours, dashes and markers that the style sheet and `_MARKERS` have."""
_MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "M-4,-4h8v8h-8z",
    "M0,-5l5,9h-10z",
    "M0,-5.5l5,5.5l-5,5.5l-5,-5.5z",
    "M0,5l5,-9h-10z",
    "M-4.5,-1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
)


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        label: Its name.
        x: Of its points, ascending.
        y: Of its points; NaN interrupts the line.
        style: Which colour, dash and marker.
        low: Lower edge of a band around it, if any.
        high: Upper edge.
        markers: Whether the points are marked.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    markers: bool = True


@dataclass(frozen=True)
class Point:
    """A point with its intervals in both directions."""

    label: str
    x: Interval
    y: Interval
    style: int = 0


@dataclass(frozen=True)
class Axes:
    """Where values are on the canvas.

    Attributes:
        x: Least and greatest value.
        y: Least and greatest value.
        height: Of the canvas.
        left: Room for the labels of the vertical axis.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    height: float = _HEIGHT
    left: float = _LEFT

    def at_x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x
        return self.left + (value - low) / (high - low) * (_WIDTH - self.left - _RIGHT)

    def at_y(self, value: float) -> float:
        """Vertical place of a value; the canvas grows downwards."""
        low, high = self.y
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)


def line_chart(
    title: str,
    x_label: str,
    series: Sequence[Series],
    from_zero: bool = True,
    marks: Sequence[tuple[float, str]] = (),
) -> Html:
    """Lines over a common horizontal axis.

    Args:
        title: What is drawn, with its unit.
        x_label: Of the horizontal axis, with its unit.
        series: The lines.
        from_zero: Whether the vertical axis begins at 0.
        marks: Places on the horizontal axis to point to, and what is there.
    """
    xs = [x for one in series for x in one.x]
    ys = [y for one in series for y in (*one.y, *one.low, *one.high)]
    axes = Axes(_range(xs), _range([0.0, *ys] if from_zero else ys, pad=0.05))
    parts = [_x_axis(axes, x_label, whole=all(float(x).is_integer() for x in xs)), _y_axis(axes)]
    parts += [
        tag(
            "path",
            tag("title", text),
            class_="pointer",
            d=f"M{_n(axes.at_x(x))},{_TOP}V{_n(axes.at_y(axes.y[0]))}",
        )
        for x, text in marks
    ]
    parts += [_band(axes, one) for one in series if len(one.low)]
    parts += [_line(axes, one) for one in series]
    return _chart(title, f"{len(series)} {_plural('line', len(series))} over {x_label}", parts)


def scatter_chart(title: str, x_label: str, y_label: str, points: Sequence[Point]) -> Html:
    """Points with intervals in both directions."""
    axes = Axes(
        _range([v for p in points for v in (p.x.low, p.x.high)], pad=0.08),
        _range([v for p in points for v in (p.y.low, p.y.high)], pad=0.08),
    )
    parts = [_x_axis(axes, x_label), _y_axis(axes, y_label)]
    for point in points:
        x, y = axes.at_x(point.x.estimate), axes.at_y(point.y.estimate)
        horizontal = f"M{_n(axes.at_x(point.x.low))},{_n(y)}H{_n(axes.at_x(point.x.high))}"
        vertical = f"M{_n(x)},{_n(axes.at_y(point.y.low))}V{_n(axes.at_y(point.y.high))}"
        said = f"{point.label}: {x_label} {_spelt(point.x)}, {y_label} {_spelt(point.y)}"
        parts += [
            tag("path", class_=f"whisker {_style(point.style)}", d=horizontal + vertical),
            _marker(x, y, point.style, said),
        ]
    return _chart(title, f"{len(points)} {_plural('policy', len(points))}", parts)


def bar_chart(title: str, x_label: str, rows: Mapping[str, Mapping[str, Interval | None]]) -> Html:
    """Horizontal bars with intervals: in each row one bar of each series, in the order of the styles."""
    intervals = [interval for bars in rows.values() for interval in bars.values() if interval is not None]
    n_bars = sum(len(bars) for bars in rows.values())
    label_height = 15.0
    height = _TOP + _BOTTOM + n_bars * _BAR + len(rows) * (label_height + _ROW_GAP)
    ends = [value for interval in intervals for value in (interval.low, interval.high)]
    axes = Axes(_range([0.0, *ends]), (0.0, 1.0), height, left=10.0)
    parts, top = [_x_axis(axes, x_label)], _TOP
    for row, bars in rows.items():
        parts.append(tag("text", row, class_="row", x=axes.at_x(0.0) if axes.x[0] == 0 else 10.0, y=top + 11))
        top += label_height
        for style, (label, interval) in enumerate(bars.items()):
            parts.append(_bar(axes, top, style, f"{row}, {label}", interval))
            top += _BAR
        top += _ROW_GAP
    return _chart(title, f"{len(rows)} {_plural('row', len(rows))} of bars", parts, height)


def histogram(title: str, x_label: str, values: Sequence[float], n_bins: int = 20) -> Html:
    """How often which values occur, without what is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = _range(finite)
    counts, edges = np.histogram(finite, bins=n_bins, range=(low, high))
    axes = Axes((low, high), _range([0.0, float(max(counts))]))
    parts = [_x_axis(axes, x_label), _y_axis(axes, "episodes", whole=True)]
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, y = axes.at_x(float(left)), axes.at_y(float(count))
            said = tag("title", f"{count} between {_spell(float(left))} and {_spell(float(right))}")
            size = {"width": _n(axes.at_x(float(right)) - x - 1), "height": _n(axes.at_y(0.0) - y)}
            parts.append(tag("rect", said, class_=f"bar {_style(0)}", x=_n(x), y=_n(y), **size))
    return _chart(title, f"{len(finite)} {_plural('episode', len(finite))}", parts)


def legend(labels: Sequence[str]) -> Html:
    """Which style stands for what, by the order of the styles."""
    items = []
    for style, label in enumerate(labels):
        swatch = [
            tag("path", class_=f"line {_style(style)}", d="M2,8H34"),
            tag(
                "path",
                class_=f"marker {_style(style)}",
                d=_MARKERS[style % _STYLES],
                transform="translate(18,8)",
            ),
        ]
        drawn = tag("svg", *swatch, viewBox="0 0 36 16", width=36, height=16, aria_hidden="true")
        items.append(tag("li", drawn, " ", label))
    return tag("ul", *items, class_="legend")


def _chart(title: str, what: str, parts: Sequence[str], height: float = _HEIGHT) -> Html:
    drawn = tag(
        "svg",
        *parts,
        class_="chart",
        viewBox=f"0 0 {_WIDTH:g} {height:g}",
        role="img",
        aria_label=f"{title}: {what}",
    )
    return tag("figure", tag("figcaption", title), drawn)


def _line(axes: Axes, series: Series) -> Html:
    parts, path, pen = [], [], "M"
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        path.append(f"{pen}{_n(axes.at_x(x))},{_n(axes.at_y(y))}")
        pen = "L"
        if series.markers:
            said = f"{series.label}, {_spell(x)}: {_spell(y)}"
            parts.append(_marker(axes.at_x(x), axes.at_y(y), series.style, said))
    said = tag("title", series.label)
    return join([tag("path", said, class_=f"line {_style(series.style)}", d="".join(path)), *parts])


def _band(axes: Axes, series: Series) -> Html:
    edges = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low, series.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    there = [f"{_n(axes.at_x(x))},{_n(axes.at_y(high))}" for x, _, high in edges]
    back = [f"{_n(axes.at_x(x))},{_n(axes.at_y(low))}" for x, low, _ in reversed(edges)]
    said = tag("title", f"{series.label}, least to greatest")
    return tag("polygon", said, class_=f"band {_style(series.style)}", points=" ".join(there + back))


def _bar(axes: Axes, top: float, style: int, label: str, interval: Interval | None) -> Html:
    if interval is None:
        return tag("text", "not measured", class_="tick", x=axes.left, y=top + 10)
    zero, end, middle = axes.at_x(0.0), axes.at_x(interval.estimate), top + _BAR / 2 - 1
    whisker = f"M{_n(axes.at_x(interval.low))},{_n(middle)}H{_n(axes.at_x(interval.high))}"
    return join(
        [
            tag(
                "rect",
                tag("title", f"{label}: {_spelt(interval)}"),
                class_=f"bar {_style(style)}",
                x=_n(min(zero, end)),
                y=_n(top),
                width=_n(max(abs(end - zero), 1.0)),
                height=_n(_BAR - 2),
            ),
            tag("path", class_="whisker plain", d=whisker),
        ]
    )


def _marker(x: float, y: float, style: int, said: str) -> Html:
    place = f"translate({_n(x)},{_n(y)})"
    return tag(
        "path",
        tag("title", said),
        class_=f"marker {_style(style)}",
        d=_MARKERS[style % _STYLES],
        transform=place,
    )


def _x_axis(axes: Axes, label: str, whole: bool = False) -> Html:
    bottom = axes.height - _BOTTOM
    parts = []
    for value in _ticks(*axes.x, most=6, whole=whole):
        x = _n(axes.at_x(value))
        parts.append(tag("path", class_="grid", d=f"M{x},{_TOP}V{_n(bottom)}"))
        parts.append(tag("text", f"{value:g}", class_="tick", x=x, y=_n(bottom + 13), text_anchor="middle"))
    place = {"x": _n((axes.left + _WIDTH - _RIGHT) / 2), "y": _n(axes.height - 7), "text_anchor": "middle"}
    return join([*parts, tag("text", label, class_="label", **place)])


def _y_axis(axes: Axes, label: str = "", whole: bool = False) -> Html:
    parts = []
    for value in _ticks(*axes.y, most=5, whole=whole):
        y = axes.at_y(value)
        parts.append(tag("path", class_="grid", d=f"M{axes.left:g},{_n(y)}H{_WIDTH - _RIGHT:g}"))
        parts.append(
            tag("text", f"{value:g}", class_="tick", x=axes.left - 5, y=_n(y + 4), text_anchor="end")
        )
    if label:
        turned = f"translate(11,{_n((_TOP + axes.height - _BOTTOM) / 2)}) rotate(-90)"
        parts.append(tag("text", label, class_="label", transform=turned, text_anchor="middle"))
    return join(parts)


def _range(values: Sequence[float], pad: float = 0.0) -> tuple[float, float]:
    """Least and greatest finite value, never the same, and a share of their distance beyond them."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # no more than labels can tell apart
        spread = max(abs(low) / 2, 1e-9) if low else 1.0
        return low - spread * (low != 0), high + spread
    above = (high - low) * pad
    return (low if low == 0 else low - above), high + above


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers within a range: multiples of 1, 2 or 5 times a power of ten, of 1 at least if `whole`."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.10g}") for n in range(first, last + 1)]


def _style(index: int) -> str:
    return f"s{index % _STYLES}"


def _n(value: float) -> str:
    return f"{value:.1f}"


def _spell(value: float) -> str:
    return f"{value:.4g}"


def _spelt(interval: Interval) -> str:
    return f"{_spell(interval.estimate)} (95 % {_spell(interval.low)} to {_spell(interval.high)})"


def _plural(noun: str, n: int) -> str:
    if n == 1:
        return noun
    return noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
