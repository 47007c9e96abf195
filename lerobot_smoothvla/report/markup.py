"""HTML and SVG in which everything that is not markup is escaped, whatever file it came from."""

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Markup that is meant as such; any other text is escaped where it is put in."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | float | bool | None) -> Html:
    """An element, `tag("td", "a < b", class_="number")`.

    Args:
        name: Of the element.
        children: Its content in this order; text is escaped, `Html` is not.
        attributes: A trailing underscore is dropped and the others become dashes. True stands for an
            attribute without a value; None and False leave it out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{name}{written}>{join(children)}" + ("" if name in _VOID else f"</{name}>"))


def join(children: Iterable[str]) -> Html:
    """Several pieces one after another."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table that scrolls by itself where the screen is narrow; the first cell of a row is its header."""
    head = tag("tr", *(tag("th", header, scope="col") for header in headers))
    body = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in others))
        for first, *others in rows
    )
    content = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=caption)


def facts_list(facts: Iterable[tuple[str, str]]) -> Html:
    """Names, and what belongs to them."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts))


def details(summary: str, *children: str) -> Html:
    """What opens when its summary is clicked."""
    return tag("details", tag("summary", summary), *children)


_VOID = {"meta", "link", "br", "img"}


def _attribute(key: str, value: str | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(f"{value:g}" if isinstance(value, float) else str(value))}"'
