"""What `nas-kd init` writes: a campaign file for a folder of data, with the meaning of each key beside it.

The data section follows from the folder, the budgets from what students of the space and the teacher cost.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from nas_kd.config import CampaignConfig, ConfigError, validate
from nas_kd.data import SOURCES
from nas_kd.data.source import TABLES, Recognised
from nas_kd.data.table import read_table
from nas_kd.preflight.checks import budget_knobs
from nas_kd.preflight.schema import attributes_of, summary_of
from nas_kd.search_spaces import SPACES
from nas_kd.search_spaces.knapsack import cost_range
from nas_kd.settings.mistakes import models_in
from nas_kd.teachers import is_precomputed
from nas_kd.trial import CampaignContext, build_context
from nas_kd.trials import MEASURED_LATENCY

NUM_BUDGETS = 4
LEAST_ROOM = 1.1  # the lowest budget, times what the cheapest student costs
SAVING = 2.0  # how many times fewer FLOPs than the teacher's the highest budget has, where students are so cheap
SMALLER = 0.6  # the lower of two resolutions, of the side of the data
WIDTH = 100  # characters of a comment


def starter_file(name: str, task: str | None, root: Path | None) -> str:
    """The text of a campaign file.

    Args:
        name: of the file, for the commands in its first lines.
        task: what students are to be trained for; None for what such data are mostly for.
        root: a folder of data; None for generated clips.

    Raises:
        ConfigError: the folder is of no known kind, or task and data do not fit.
        ValueError: likewise.
    """
    recognised = _recognised(root)
    values: dict[str, Any] = {"task": task or recognised.task, "trials": 12, "data": recognised.data}
    first = validate(values, source="init")
    values["teacher"] = {"model": first.teacher.model, "fit": {"epochs": first.teacher.fit.epochs}}
    values["space"] = {"name": first.space.name, **_sizes(first)}
    context = build_context(validate(values, source="init"), "cpu", decode=False)
    values["budget"] = {"max_flops": [_short(budget) for budget in _budgets(context)]}
    values["search"] = {key: getattr(first.search, key) for key in ("epochs", "batch_size", "lr")}
    values["retrain"] = {key: getattr(first.retrain, key) for key in ("epochs", "batch_size", "lr", "num_seeds")}
    values["resources"] = {"cpus_per_trial": 1, "gpus_per_trial": 0}
    head = [
        f"# A campaign of nas-kd. `nas-kd check {name}` says what it means, `nas-kd search {name} --dry-run` what it",
        f"# takes, `nas-kd search {name}` runs it. Keys that are not here have their defaults (`nas-kd schema`).",
    ]
    return "\n".join([*head, *_section(values, CampaignConfig, ""), *_others(values, _examples(first))]) + "\n"


def _recognised(root: Path | None) -> Recognised:
    if root is None:
        return Recognised({"source": "generated"}, "classification")
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder of data")
    for source, kind in SOURCES.items():
        found = kind.recognise(root)
        if found is not None:
            return Recognised({"source": source, **found.data}, found.task)
    for name in TABLES:
        if (root / name).is_file():
            read_table(root / name, ("path", "label", "split"))  # says what is wrong with it
    raise ConfigError(
        f"{root} holds no labels.csv with the columns path,label,split, and no .tfrecord files; list the files in such "
        "a csv (columns sequence,frame too for label images), or give your own data set by data: {source: own, …}"
    )


def _sizes(config: CampaignConfig) -> dict[str, Any]:
    """Sides and numbers of frames that students may have, where the space has them: those of the data and fewer."""
    if config.space.name not in SPACES:
        return {}
    known, found = SPACES[config.space.name].settings.model_fields, {}
    side, frames = getattr(config.data, "size", None), getattr(config.data, "frames", None)
    if "resolution" in known and isinstance(side, int):
        found["resolution"] = sorted({max(round(SMALLER * side / 16) * 16, min(side, 16)), side})
    if "frames" in known and isinstance(frames, int):
        found["frames"] = sorted({max(frames // 2, 1), frames})
    return found


def _budgets(context: CampaignContext) -> list[float]:
    """FLOPs, ascending, at equal ratios."""
    knobs = budget_knobs(context)
    ranges = [cost_range(context.table(dict(zip(knobs, each, strict=True)))) for each in product(*knobs.values())]
    low, high = LEAST_ROOM * max(least for least, _ in ranges), float(max(most for _, most in ranges))
    if not is_precomputed(context.teacher_model):
        flops, _ = context.input_type.teacher_flops(context.teacher_model, context.teacher_example(), context.space)
        if flops / SAVING > low:
            high = min(high, flops / SAVING)
    if high <= low:
        return [low]
    return [low * (high / low) ** (step / (NUM_BUDGETS - 1)) for step in range(NUM_BUDGETS)]


def _short(flops: float) -> str:
    """Such as 1.3M, rounded up to two digits."""
    for factor, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k"), (1, "")):
        if flops >= factor:
            digits = 10 ** (math.floor(math.log10(flops / factor)) - 1)
            return f"{math.ceil(flops / factor / digits) * digits:g}{suffix}"
    return "1"


def _section(values: Mapping[str, Any], model: type[BaseModel] | None, indent: str) -> list[str]:
    """Lines of YAML with comments."""
    meanings = attributes_of(model) if model is not None else {}
    lines: list[str] = []
    for key, value in values.items():
        if not indent:
            lines.append("")
        inner = _model_of(model, key, values)
        meaning = meanings.get(key) or (summary_of(inner) if inner is not None else "")
        lines += _comment(meaning, indent)
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_section(value, inner, indent + "  ")]
        else:
            lines.append(f"{indent}{_entry(key, value)}")
    return lines


def _model_of(model: type[BaseModel] | None, key: str, values: Mapping[str, Any]) -> type[BaseModel] | None:
    """The section that stands at a key of another one; None where it is open, or no section."""
    if model is None or key not in model.model_fields:
        return None
    value = values[key]
    if isinstance(value, Mapping) and value.get("source") in SOURCES:
        return SOURCES[value["source"]]
    if isinstance(value, Mapping) and value.get("name") in SPACES:
        return SPACES[value["name"]].settings
    found = models_in(model.model_fields[key].annotation)
    return found[0] if found else None


def _comment(text: str, indent: str) -> list[str]:
    if not text:
        return []
    text = text[:1].upper() + text[1:]
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _entry(key: str, value: Any) -> str:
    return f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix('...' + chr(10)).strip()}"


def _examples(config: CampaignConfig) -> dict[str, Any]:
    """What stands behind keys of which the default shows nothing."""
    names = [objective.name for objective in config.ranking.objectives]
    return {"objectives": names, "constraints": {MEASURED_LATENCY: {"max": 5}}}


def _others(values: Mapping[str, Any], examples: Mapping[str, Any]) -> list[str]:
    """Keys of the file that are left out, as comments with their defaults, or an example."""
    lines: list[str] = []
    meanings = attributes_of(CampaignConfig)
    for key, field in CampaignConfig.model_fields.items():
        # The name of a campaign is by default that of its file.
        if key in examples:
            lines += ["", *_comment(f"{meanings[key]} For example:", ""), f"#{_entry(key, examples[key])}"]
        elif key not in values and key != "name" and not models_in(field.annotation):
            default = TypeAdapter(Any).dump_python(field.get_default(call_default_factory=True), mode="json")
            lines += ["", *_comment(meanings.get(key, ""), ""), f"#{_entry(key, default)}"]
    return lines
