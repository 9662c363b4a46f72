"""What the site needs beside the pages: links to files of the repository become their names; the list of the API."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def public_names() -> list[str]:
    """The names in `nas_kd.__all__`, without importing it."""
    tree = ast.parse((ROOT / "nas_kd" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError("nas_kd/__init__.py defines no __all__")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page."""
    if page.file.src_uri == "api.md":
        markdown += "".join(f"\n::: nas_kd.{name}\n" for name in sorted(public_names(), key=str.lower))
    return _OUTSIDE.sub(r"`\1`", markdown)
