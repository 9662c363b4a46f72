"""One HTML file that works offline, and in which text from a record stays text.

Three layers keep names and labels from running. Markup is built with `element`, which escapes every plain string. Data
for the scripts is JSON without any character that HTML reads. And the page's Content-Security-Policy allows exactly the
scripts written here, by hash, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import unicodedata
from collections.abc import Mapping, Sequence
from string import Template
from typing import TypeAlias

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis.assets import PAGE, SCRIPT, STYLE


class Markup(str):
    """Text that is HTML already; `element` inserts it as it is."""

    __slots__ = ()


Child: TypeAlias = "Markup | str | int | Sequence[Child] | None"

_VOID = frozenset({"img", "input", "br"})


def escape(text: object) -> Markup:
    """Text as HTML shows it. Control and direction-changing characters go, except line breaks and tabs."""
    kept = "".join(char for char in str(text) if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    return Markup(html.escape(kept, quote=True))


def element(name: str, *children: Child, **attributes: object) -> Markup:
    """Build an element: plain children and attribute values are escaped, `Markup` is not.

    Args:
        name: tag.
        children: text, markup, or sequences of both; None is left out.
        attributes: `class_` becomes `class` and `data_value` becomes `data-value`; None and False leave the attribute
            out, True sets it without a value.
    """
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(value)}"')
    start = f"<{name}{''.join(parts)}>"
    return Markup(start) if name in _VOID else Markup(f"{start}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after another, plain text escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str | int):
            parts.append(escape(child))
        elif child is not None:
            parts.append(join(*child))
    return Markup("".join(parts))


def table(headers: Sequence[Child], rows: Sequence[Sequence[Child]], **attributes: object) -> Markup:
    """A table in a frame that scrolls sideways. Cells that are `td` or `tr` markup already are taken as they are."""
    first = rows[0] if rows else ()
    numeric = [isinstance(cell, Markup) and "number" in cell[: cell.find(">")] for cell in first]
    numeric += [False] * (len(headers) - len(numeric))
    head = element(
        "tr",
        [element("th", h, scope="col", class_="number" if n else None) for h, n in zip(headers, numeric, strict=True)],
    )
    body = [element("tr", [_cell(cell) for cell in row]) for row in rows]
    content = element("table", element("thead", head), element("tbody", body), **attributes)
    return element("div", content, class_="scroll")


def _cell(cell: Child) -> Markup:
    return cell if isinstance(cell, Markup) and cell.startswith("<td") else element("td", cell)


def json_for_html(text: str) -> Markup:
    """JSON text that may stand in a `<script>`: `<`, `>`, `&` and the two Unicode line ends are escaped.

    These can occur only inside JSON strings, where `\\uXXXX` means the same.
    """
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def chart(
    name: str, figure: go.Figure, caption: str, *, fallback_png: bytes | None = None, low: bool = False
) -> Markup:
    """A place for an interactive figure, and its data for the script.

    Args:
        name: id of the place.
        figure: what to draw there.
        caption: printed below, and read out in place of the picture.
        fallback_png: shown where scripts do not run.
        low: whether to take less height.
    """
    fallback = None
    if fallback_png is not None:
        source = f"data:image/png;base64,{base64.b64encode(fallback_png).decode('ascii')}"
        fallback = element("noscript", element("img", src=source, alt=caption))
    data = element("script", json_for_html(figure.to_json()), type="application/json")
    plot = element("div", class_="plot low" if low else "plot", id=name, role="img", aria_label=caption)
    return element("figure", plot, data, fallback, element("figcaption", caption), class_="chart")


def render(title: str, body: Markup) -> str:
    """The whole page around `body`, with its style, its scripts and a policy that allows nothing else."""
    scripts = [_normalise(get_plotlyjs()), _normalise(SCRIPT)]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = {
        "default-src": "'none'",
        "script-src": hashes,
        "style-src": "'unsafe-inline'",  # plotly styles what it draws; a style cannot run code or, here, load anything
        "img-src": "data: blob:",  # the fallback, and plotly's own download of a picture
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return Template(PAGE).substitute(
        policy="; ".join(f"{name} {sources}" for name, sources in policy.items()),
        title=escape(" ".join(title.split())),
        style=STYLE,
        body=body,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def definitions(pairs: Mapping[str, Child]) -> Markup:
    """A list of names and what they stand for."""
    rows = [join(element("dt", name), element("dd", value)) for name, value in pairs.items()]
    return element("dl", rows)


def _normalise(script: str) -> str:
    """The script with the line ends that a browser hashes; it must not end its own element."""
    script = script.replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in script.lower()
    assert "<!--" not in script
    return script


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
