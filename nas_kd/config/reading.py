"""A campaign file, with what the command line sets in it, to a `CampaignConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from nas_kd.config.campaign_file import CampaignConfig, ConfigError, validate
from nas_kd.config.paths import set_path
from nas_kd.trials.passwords import masked


def load_config(path: Path | str | None, overrides: Iterable[str] = ()) -> CampaignConfig:
    """Read a campaign file.

    Args:
        path: YAML; None for the defaults.
        overrides: `dotted.path=value`, the value in YAML.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; a line for each mistake.

    Examples:
        >>> nas_kd.load_config("demo.yaml", ["trials=20"]).trials
        20
    """
    source = str(path) if path else "the default campaign"
    data: Any = {}
    if path is not None:
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such campaign file")
        try:
            data = yaml.safe_load(path.read_bytes()) or {}  # it knows the encoding by the byte order mark
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(error)}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: a campaign file holds keys and values, but this one is a {type(data).__name__}")
        data.setdefault("name", path.stem)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(masked(f"--set takes dotted.path=value, but got {override!r}"))
        try:
            set_path(data, key, yaml.safe_load(text))
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {masked(override)}: {_yaml_problem(error)}") from None
    return validate(data, source=source)


def _yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML text, without the lines that the parser would show: one may hold a password."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())
