"""Charts as inline SVG. Pure: numbers in, markup out.

Small enough to be read on a phone (420 units wide, 12 units of text), without colour alone carrying a
meaning: each line is named at its end, each limit says its value. A missing value breaks the line.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfn.metrics.times import format_ms
from cfn.report.markup import Content, Markup, tag

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 52, 14, 24

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart: its name, its CSS class, and a value for each time."""

    name: str
    style: str
    values: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A horizontal line at a value: what must hold, or what rolls back."""

    name: str
    value: float
    style: str = "limit"


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value to a place on an axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values from at most `low` to at least `high`; one unit of them where all are alike."""
    if high <= low:
        high = low + 1.0
    span = high - low
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= raw)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def line_chart(
    label: str,
    times_s: Sequence[float],
    lines: Sequence[Line],
    *,
    show: Callable[[float], str],
    limits: Sequence[Limit] = (),
    low: float | None = 0.0,
    high: float | None = None,
) -> Markup:
    """Lines over time. `low` and `high` fix an end of the value axis; a limit far above everything is
    left off the scale and said in the caption instead of flattening the lines."""
    known = [value for line in lines for value in line.values if value is not None]
    if not known or not times_s:
        return _empty(label)
    top = max(known)
    shown = (
        [limit for limit in limits if limit.value <= 2.5 * max(top, 1e-9)] if high is None else list(limits)
    )
    marks = ticks(
        low if low is not None else min([*known, *(limit.value for limit in shown)]),
        high if high is not None else max([top * 1.05, *(limit.value * 1.05 for limit in shown)]),
    )
    y = Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    x = Scale(times_s[0], max(times_s[-1], times_s[0] + 1), LEFT, WIDTH - RIGHT)
    parts: list[Content] = [_grid(marks, y, show), _time_axis(times_s, x)]
    for limit in shown:
        parts.append(
            tag("line", class_=limit.style, x1=LEFT, x2=WIDTH - RIGHT, y1=y(limit.value), y2=y(limit.value))
        )
    parts += [_line(line, times_s, x, y) for line in lines]
    parts += _end_labels([(line.name, line.style, _last(line.values)) for line in lines], y)
    for limit in shown:
        above = y(limit.value) - 4 if y(limit.value) > TOP + 12 else y(limit.value) + 12
        words = f"{limit.name} {show(limit.value)}"
        parts.append(tag("text", words, class_=f"{limit.style}-text", x=LEFT + 4, y=above))
    return _svg(label, parts)


def share_chart(label: str, times_s: Sequence[float], v2_pct: Values, ordered_pct: float | None) -> Markup:
    """V2's share of the requests as an area, the ordered share as a line."""
    if not times_s or all(value is None for value in v2_pct):
        return _empty(label)
    y = Scale(0, 100, HEIGHT - BOTTOM, TOP)
    x = Scale(times_s[0], max(times_s[-1], times_s[0] + 1), LEFT, WIDTH - RIGHT)
    parts: list[Content] = [_grid([0, 25, 50, 75, 100], y, lambda value: f"{value:g} %")]
    for run in _runs(v2_pct):
        path = " ".join(f"{x(times_s[at])},{y(v2_pct[at] or 0.0)}" for at in run)
        ends = f"{x(times_s[run[-1]])},{y(0)} {x(times_s[run[0]])},{y(0)}"
        parts.append(tag("polygon", class_="area v2", points=f"{path} {ends}"))
    parts.append(_line(Line(name="V2", style="v2", values=v2_pct), times_s, x, y))
    if ordered_pct is not None:
        parts.append(
            tag("line", class_="limit", x1=LEFT, x2=WIDTH - RIGHT, y1=y(ordered_pct), y2=y(ordered_pct))
        )
        above = y(ordered_pct) - 5 if y(ordered_pct) > TOP + 14 else y(ordered_pct) + 14
        parts.append(tag("text", f"ordered {ordered_pct:g} %", class_="limit-text", x=LEFT + 4, y=above))
    parts += [_time_axis(times_s, x), *_end_labels([("V2", "v2", _last(v2_pct))], y)]
    return _svg(label, parts)


def strip(label: str, marks: Sequence[tuple[str, str]]) -> Markup:
    """A row of marks, oldest first: (CSS class, what it says when pointed at)."""
    if not marks:
        return _empty(label)
    width = min(18.0, (WIDTH - 8) / len(marks))
    cells = [
        tag("rect", tag("title", words), class_=f"mark {style}", x=round(4 + number * width, 2), y=4,
            width=round(max(1.0, width - 2), 2), height=22, rx=2)
        for number, (style, words) in enumerate(marks)
    ]  # fmt: skip
    return tag("svg", tag("title", label), cells, role="img", viewBox=f"0 0 {WIDTH} 30", class_="strip")


def _svg(label: str, parts: Sequence[Content]) -> Markup:
    return tag("svg", tag("title", label), parts, role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart")


def _empty(label: str) -> Markup:
    words = tag("text", "no data in the window", class_="none", x=WIDTH / 2, y=30, text_anchor="middle")
    return tag("svg", tag("title", label), words, role="img", viewBox=f"0 0 {WIDTH} 50", class_="chart")


def _grid(marks: Sequence[float], y: Scale, show: Callable[[float], str]) -> list[Content]:
    return [
        [
            tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(mark), y2=y(mark)),
            tag("text", show(mark), class_="tick", x=LEFT - 6, y=y(mark) + 4, text_anchor="end"),
        ]
        for mark in marks
    ]


def _time_axis(times_s: Sequence[float], x: Scale) -> list[Content]:
    """Begin, middle and end, if they differ; days above two of them, seconds below ten minutes."""
    span = times_s[-1] - times_s[0]
    part = slice(5, 10) if span > 2 * 86_400 else slice(11, 16) if span > 600 else slice(11, 19)
    places = [(times_s[0], "start"), ((times_s[0] + times_s[-1]) / 2, "middle"), (times_s[-1], "end")]
    return [
        tag("text", format_ms(round(time_s * 1_000))[part], class_="tick", x=x(time_s), y=HEIGHT - 6,
            text_anchor=anchor)
        for time_s, anchor in (places if span else places[:1])
    ]  # fmt: skip


def _runs(values: Values) -> list[list[int]]:
    """Indices of successive values that are there."""
    runs: list[list[int]] = []
    for at, value in enumerate(values):
        if value is None:
            continue
        if at > 0 and values[at - 1] is not None:
            runs[-1].append(at)
        else:
            runs.append([at])
    return runs


def _line(line: Line, times_s: Sequence[float], x: Scale, y: Scale) -> list[Content]:
    parts: list[Content] = []
    for run in _runs(line.values):
        points = [(x(times_s[at]), y(line.values[at] or 0.0)) for at in run]
        if len(points) == 1:
            parts.append(tag("circle", class_=f"dot {line.style}", cx=points[0][0], cy=points[0][1], r=2))
        else:
            places = " ".join(f"{across},{down}" for across, down in points)
            parts.append(tag("polyline", class_=f"line {line.style}", points=places))
    return parts


def _last(values: Values) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _end_labels(ends: Sequence[tuple[str, str, float | None]], y: Scale) -> list[Content]:
    """The lines' names at their ends, moved apart where they would lie on one another."""
    placed = sorted(
        ((y(value), name, style) for name, style, value in ends if value is not None),
        key=lambda each: each[0],
    )
    parts: list[Content] = []
    above = -math.inf
    for place, name, style in placed:
        place = max(place + 4, above + 13)
        above = place
        parts.append(tag("text", name, class_=f"name {style}", x=WIDTH - RIGHT + 6, y=round(place, 2)))
    return parts
