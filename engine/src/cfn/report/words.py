"""Figures and times as a person reads them."""


def moment(text: str) -> str:
    """A record's time to the minute."""
    return text[:16].replace("T", " ")


def figure(value: float) -> str:
    """A number with as many digits as it is worth."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1_000 else f"{value:.4g}"


def unit(unit: str) -> str:
    """A unit of the records, short."""
    return {"pct": "%", "pct_per_window": "% a window", "count": "", "kb": "kB", "ratio": "x"}.get(unit, unit)


def ms(value: float | None) -> str:
    """Milliseconds, as seconds from one second on."""
    if value is None:
        return "-"
    return f"{value / 1_000:.3g} s" if value >= 1_000 else f"{value:.3g} ms"


def pct(value: float | None) -> str:
    """A percentage."""
    return "-" if value is None else f"{value:.4g} %"


def count(value: float) -> str:
    """A number of things."""
    return f"{value / 1_000:.3g} k" if value >= 10_000 else f"{value:g}"


def mb(value: float) -> str:
    """Megabytes, as GB from one on."""
    return f"{value / 1_024:.3g} GB" if value >= 1_024 else f"{value:.3g} MB"


def ratio(mine: float | None, other: float | None) -> str:
    """How many times as large one figure is."""
    return f"x {mine / other:.2f}" if mine is not None and other else "-"


def points(mine: float | None, other: float | None) -> str:
    """The difference of two percentages."""
    return f"{mine - other:+.2f} points" if mine is not None and other is not None else "-"
