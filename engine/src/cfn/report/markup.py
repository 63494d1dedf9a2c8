"""HTML and SVG from Python, safe by construction: every text is escaped where it enters."""

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is markup already; whatever is not of this type is escaped."""

    __slots__ = ()


Content = str | int | float | None | Iterable["Content"]

_VOID = frozenset(("meta", "br", "line", "rect", "circle", "path", "polyline"))


def tag(name: str, /, *content: Content, **attributes: object) -> Markup:
    """An element. Attribute names as in Python: a trailing underscore is dropped, others are hyphens;
    None leaves an attribute out."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = render(content)
    if name in _VOID and not inside:
        return Markup(f"<{name}{words}/>" if name != "meta" else f"<{name}{words}>")
    return Markup(f"<{name}{words}>{inside}</{name}>")


def render(content: Content) -> Markup:
    """Content as markup: what is not Markup is escaped, lists are joined, None is nothing."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, str | int | float):
        return Markup(html.escape(str(content)))
    return Markup("".join(render(each) for each in content))
