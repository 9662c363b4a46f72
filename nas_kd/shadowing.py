"""Our package names are generic: say so clearly where another module of the same name would be imported instead."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("search_spaces", "trials", "analysis")


def check_packages() -> None:
    """Raise where one of our packages is not the one that ships with this `nas_kd`.

    Raises:
        ImportError: another file shadows a package of ours; the sentence names it.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        ours = home / name / "__init__.py"
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found is None and spec is not None and spec.submodule_search_locations:
            found = Path(next(iter(spec.submodule_search_locations))).resolve()  # a folder without __init__.py
        if found != ours:
            raise ImportError(
                f"nas_kd needs its own package {name!r} at {ours.parent}, but Python finds "
                f"{found or 'nothing'} first; rename or move that, or start Python in another folder"
            )
