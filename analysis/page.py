"""Rendering of the HTML report: one file that works offline, and in which text from a record stays text.

Three layers keep names and labels from running. The templates escape every value. Data for the scripts is JSON without
any character that HTML reads. And the page's Content-Security-Policy allows exactly the scripts of the page, by hash,
and no network.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

_FOLDER = Path(__file__).parent / "templates"
_UNITS = "%|[kMGTPE]|(?:[kMGT]i?)?B|FLOPs|points?|ms|s|min|h"
# The spaces between a number and its unit, behind a prefix of FLOPs, and on both sides of ± and ×.
_TIED = re.compile(rf"(?<=\d) (?=(?:{_UNITS})(?!\w))|(?<=\d [kMGTPE]) (?=FLOPs\b)|(?<=\d) (?=[±×])|(?<=\d [±×]) ")


def environment() -> jinja2.Environment:
    """The templates of the report. Each value is escaped; a name that is missing is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["copied"] = copied
    return made


def _shown(value: object) -> object:
    """A value as the templates print it; `Markup` stays as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else tied(visible(value))


def copied(text: str) -> Markup:
    """A text that readers copy, such as a command: its spaces stay spaces."""
    return escape(visible(text))


def tied(text: str) -> str:
    """A text that no line end parts within `95.1 %`, `2.3 M FLOPs`, `4.1 ± 0.2 ms` or `3 × zero`."""
    return _TIED.sub("\u00a0", text)


def visible(text: str) -> str:
    """A text without its control and direction-changing characters, except line breaks and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))


def json_for_html(text: str) -> Markup:
    """JSON text that may stand in a `<script>`: `<`, `>`, `&` and the two Unicode line ends are escaped.

    These can occur only inside JSON strings, where `\\uXXXX` means the same.
    """
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


@dataclass(frozen=True)
class Chart:
    """A place for an interactive figure, and its data for the script.

    Attributes:
        name: id of the place.
        data: the figure as JSON.
        caption: printed below, and read out in place of the picture.
        fallback: URL of a picture that is shown where scripts do not run; None without one.
        height: of the place in pixels, which the figure says itself; None for the usual one.
    """

    name: str
    data: Markup
    caption: str
    fallback: str | None = None
    height: int | None = None


def chart(
    name: str,
    figure: go.Figure,
    caption: str,
    *,
    fallback_png: bytes | None = None,
    is_sized: bool = False,
) -> Chart:
    """A figure as the templates take it, see `Chart`; one that is sized says how high it is."""
    fallback = None
    if fallback_png is not None:
        fallback = f"data:image/png;base64,{base64.b64encode(fallback_png).decode('ascii')}"
    return Chart(name, json_for_html(figure.to_json()), caption, fallback, figure.layout.height if is_sized else None)


def render(template: str, values: Mapping[str, object]) -> str:
    """A page with its style, its scripts and a policy that allows nothing else.

    Args:
        template: its file in `analysis/templates`.
        values: what the template names, beside `policy`, `style`, `plotly` and `script`.
    """
    plotly, script = _normalise(get_plotlyjs()), _normalise((_FOLDER / "script.js").read_text(encoding="utf-8"))
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (plotly, script))
    policy = {
        "default-src": "'none'",
        "script-src": hashes,
        "style-src": "'unsafe-inline'",  # plotly styles what it draws; a style cannot run code or, here, load anything
        "img-src": "data: blob:",  # the fallback, and plotly's own download of a picture
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    page = environment().get_template(template)
    return page.render(
        **values,
        policy="; ".join(f"{name} {sources}" for name, sources in policy.items()),
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        plotly=Markup(_packed(plotly)),
        script=Markup(script),
    )


def _packed(script: str) -> str:
    """gzip in base64, which `script.js` unpacks: 2 MB of plotly in place of 4.8 MB."""
    return base64.b64encode(gzip.compress(script.encode("utf-8"), mtime=0)).decode("ascii")


def _normalise(script: str) -> str:
    """The script with the line ends that a browser hashes; it must not end its own element."""
    script = script.replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in script.lower()
    assert "<!--" not in script
    return script


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
