"""What a run may not change between two starts, identified by content: data and labels of each split, the files of
the teacher, and a space of the user's by its choices and costs. Paths and times of change do not count, so data may
move. The code of a teacher is known by its answers to a fixed input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nas_kd.data import ClipDataset, OwnConfig
from nas_kd.data.fingerprint import READ_S, changing_item, content_hash
from nas_kd.data.sample import labels_of
from nas_kd.files import sha256_of
from nas_kd.search_spaces import SearchSpace
from nas_kd.teachers import is_precomputed
from nas_kd.trial import CampaignContext

_ANSWERS = 64  # of the outputs for a fixed input, at most about twice as many
_TOLERANCE = 1e-3  # of the largest answer: devices round differently
_NAMED = 5  # keys that are named where more changed
_SHOWN = 40  # characters of a value
_WORDS = {
    "weights": "another file at teacher.weights",
    "start": "another file at retrain.weights",
    "model": "other files of teacher.model",
    "space": "another space.name, of other layers, choices or costs (your code of it changed)",
    "train": "other training data",
    "parts": "training data parted differently in weights and gates",
    "val": "other validation data",
    "test": "other test data",
    "shown": "data of which nets see another number of frames or another size, or with another flip_safe",
    "evaluation": "another evaluation (clips, window or crops)",
}


def identity(context: CampaignContext, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Name of a part -> what identifies it, as JSON.

    Args:
        context: of the campaign.
        before: as it was when the run began, with which it is to be compared.
    """
    splits, key = context.splits, context.input_type.key
    bases = {"train": splits.retrain.base, "val": splits.val, "test": splits.test}
    found: dict[str, Any] = {
        name: _of_split(dataset, key, (before or {}).get(name, {}).get("read")) for name, dataset in bases.items()
    }
    found["parts"] = _short(splits.weights.indices, splits.gates.indices)
    if isinstance(context.config.data, OwnConfig):  # others say so in the campaign file
        found["shown"] = _short(splits.info.seen, splits.info.flip_safe)
    teacher, evaluation = context.config.teacher, context.config.evaluation
    if not evaluation.is_plain:
        found["evaluation"] = evaluation.model_dump(mode="json", include={"clips", "window", "crops"})
    if teacher.weights is not None:
        found["weights"] = sha256_of(teacher.weights)
    start = context.config.retrain.weights
    if start is not None:
        found["start"] = sha256_of(start)
    if teacher.model_files:
        found["model"] = {path.name: sha256_of(path) for path in teacher.model_files}
    if context.config.space.is_own or context.config.space.own_operators:  # others are known by the campaign file
        found["space"] = _of_space(context.space)
    return found


def describe_unread(found: Mapping[str, Any]) -> list[str]:
    """Sentences on the splits of which not all items could be read.

    Args:
        found: as `identity` gave it.
    """
    return [
        f"{found[name]['read']:,} of {found[name]['items']:,} items of {_WORDS[name].removeprefix('other ')} were read "
        f"in {READ_S:g} s, to tell a changed set when the campaign is started again; where another item changes, "
        "nobody notices: give the data set an attribute `identity`, a string that changes with its items"
        for name in ("train", "val", "test")
        if "read" in found[name]
    ]


def _short(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _of_space(space: SearchSpace) -> str:
    """A hash of what can be chosen and of what it costs."""
    with torch.random.fork_rng(devices=[]):  # counting builds modules
        table = space.cost_table({name: values[0] for name, values in space.knobs.items()})
    terms = [(term.name, term.variables, term.costs.tolist()) for term in table.terms]
    return _short(dict(space.knobs), dict(table.variables), table.constant, terms)


@torch.no_grad()
def answers(context: CampaignContext) -> list[float] | None:
    """Some of the teacher's outputs for a fixed input, which tell one code of its forward pass from another.

    Args:
        context: with a teacher that has its weights.

    Returns:
        None of a teacher whose answers come with the data.
    """
    model = context.teacher_model
    if is_precomputed(model):
        return None
    values = model.eval()(context.teacher_examples(2)).flatten()
    step = max(len(values) // _ANSWERS, 1)
    return [float(f"{float(value):.6g}") for value in values[::step]]


def same_answers(before: list[float] | None, now: list[float] | None) -> bool:
    """Whether two lists of answers are those of one teacher: equal but for rounding.

    Args:
        before: as `answers` gave it when the run began.
        now: as it gives it.
    """
    if before is None or now is None:
        return before is None and now is None
    if len(before) != len(now):
        return False
    limit = _TOLERANCE * max(abs(value) for value in before)
    return all(abs(old - new) <= limit for old, new in zip(before, now, strict=True))


def check_sections(run_dir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise where the campaign file says something else of the teacher or of the data than when a run was begun.

    Args:
        run_dir: the run's folder.
        before: `CampaignConfig.teacher_content` when it began.
        now: as it is.

    Raises:
        ValueError: the keys, with both values of the first one.
    """
    old, new = _flat(json.loads(json.dumps(before))), _flat(json.loads(json.dumps(now)))
    changed = [path for path in (old | new) if old.get(path) != new.get(path)]
    if changed:
        first = changed[0]
        others = f"; {', '.join(changed[1:_NAMED])} changed, too" if changed[1:] else ""
        others += f", and {len(changed) - _NAMED} more keys" if len(changed) > _NAMED else ""
        raise ValueError(
            f"{run_dir} was begun with another {first} ({_shown(old.get(first))} then, {_shown(new.get(first))} now"
            f"{others}): its trials and its teacher's figures would not be comparable; restore what changed, or give "
            "the campaign another name"
        )


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted path -> value of everything in nested sections."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= _flat(value, f"{path}{name}.") if isinstance(value, dict) and value else {path + name: value}
    return found


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def check_identity(run_dir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise where a run goes on with something else than it was begun with.

    Args:
        run_dir: the run's folder.
        before: as `identity` was when it began.
        now: as it is.

    Raises:
        ValueError: what changed.
    """
    changed = changed_parts(before, now)
    if changed:
        raise ValueError(
            f"{run_dir} was begun with {', '.join(changed)}: its trials and its teacher's figures would not be "
            "comparable; restore what changed, or give the campaign another name"
        )


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run was begun with and what differs now, in words, such as `other validation data (other labels)`.

    Args:
        before: as `identity` was when it began.
        now: as it is.
    """
    changed = []
    for name, words in _WORDS.items():
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name in ("train", "val", "test") and isinstance(old, dict) and isinstance(new, dict):
            same = old["items"] == new["items"]
            what = "other labels" if old["content"] == new["content"] and same else "other content or order"
            words += f" ({what})" if same else f" ({old['items']} items then, {new['items']} now)"
        changed.append(words)
    if "parts" in before and len(changed) > 1 and _WORDS["parts"] in changed:
        changed.remove(_WORDS["parts"])  # it follows from the rest
    return changed


def _of_split(dataset: ClipDataset, key: str, num_read: int | None) -> dict[str, Any]:
    """Of one split; `read` is the number of items whose content counts, where these are not all."""
    labels = hashlib.sha256(repr(labels_of(dataset)).encode()).hexdigest()
    found = {"items": len(dataset), "labels": labels}
    # Items that differ at each access, such as random windows, have no content that could be compared.
    if changing_item(dataset, key) is not None:
        return found | {"content": "changing"}
    content, read = content_hash(dataset, num_read)
    return found | {"content": content} | ({} if read == len(dataset) else {"read": read})
