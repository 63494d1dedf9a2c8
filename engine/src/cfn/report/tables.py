"""Tables, badges and cards of the report."""

from collections.abc import Iterable, Sequence

from cfn.report.markup import Content, Markup, render, tag

STYLES = {
    "PASS": "good", "COMPLETE": "good",
    "FAIL": "bad", "PIVOT": "bad", "ERROR": "bad", "P0": "bad", "P1": "bad",
    "INCONCLUSIVE": "wait", "INCOMPLETE": "wait", "NO_DATA": "wait", "P2": "wait",
}  # fmt: skip
NONE_YET = "none-yet"
MARKS = {"good": "✓", "bad": "✗", "wait": "…", NONE_YET: "-"}


def card(title: str, content: Content) -> Markup:
    """A titled box."""
    return tag("div", tag("h3", title), content, class_="card")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Content]],
    *,
    numbers: Sequence[int] = (),
    names: Sequence[int] = (),
    times: Sequence[int] = (),
    wide: Sequence[int] = (),
    row_classes: Sequence[str | None] | None = None,
) -> Markup:
    """A table that becomes a list of cards on a phone. Columns are given by number."""

    def style(column: int) -> str | None:
        words = [("number", numbers), ("name", names), ("time", times), ("wide", wide)]
        return " ".join(word for word, columns in words if column in columns) or None

    head = tag("tr", [tag("th", each, class_=style(at)) for at, each in enumerate(heads)])
    body = [
        tag(
            "tr",
            [tag("td", tag("span", render(cell)), class_=style(at), data_label=heads[at])
             for at, cell in enumerate(row)],
            class_=row_classes[number] if row_classes else None,
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return tag("div", tag("table", tag("thead", head), tag("tbody", body), class_="stacked"), class_="scroll")


def badge(word: str) -> Markup:
    """A verdict or a severity, told apart by mark and word, not by colour alone."""
    style = STYLES.get(word, NONE_YET)
    return tag("span", f"{MARKS[style]} {word}", class_=f"badge {style}")
