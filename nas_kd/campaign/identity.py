"""What a run may not change between two starts, identified by content: data and labels of each split, and the file of
the teacher's weights. Paths and times of change do not count, so data may move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_kd.data import ClipDataset
from nas_kd.data.fingerprint import changing_item, content_hash
from nas_kd.data.sample import labels_of
from nas_kd.trial import CampaignContext

_WORDS = {
    "weights": "another file at teacher.weights",
    "train": "other training data",
    "parts": "training data parted differently in weights and gates",
    "val": "other validation data",
    "test": "other test data",
}


def identity(context: CampaignContext) -> dict[str, Any]:
    """Name of a part -> what identifies it, as JSON.

    Args:
        context: of the campaign.
    """
    splits, key = context.splits, context.input_type.key
    found: dict[str, Any] = {
        "train": _of_split(splits.retrain.base, key),
        "parts": hashlib.sha256(repr((splits.weights.indices, splits.gates.indices)).encode()).hexdigest(),
        "val": _of_split(splits.val, key),
        "test": _of_split(splits.test, key),
    }
    path = context.config.teacher.weights
    if path is not None:
        with path.open("rb") as file:
            found["weights"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_identity(run_dir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise where a run goes on with something else than it was begun with.

    Args:
        run_dir: the run's folder.
        before: as `identity` was when it began.
        now: as it is.

    Raises:
        ValueError: what changed.
    """
    changed = []
    for name, words in _WORDS.items():
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            same = old["items"] == new["items"]
            what = "other labels" if old["content"] == new["content"] and same else "other items"
            words += f" ({what})" if same else f" ({old['items']} items then, {new['items']} now)"
        changed.append(words)
    if "parts" in before and len(changed) > 1 and _WORDS["parts"] in changed:
        changed.remove(_WORDS["parts"])  # it follows from the rest
    if changed:
        raise ValueError(
            f"{run_dir} was begun with {', '.join(changed)}: its trials and its teacher's figures would not be "
            "comparable; restore what changed, or give the campaign another name"
        )


def _of_split(dataset: ClipDataset, key: str) -> dict[str, Any]:
    labels = hashlib.sha256(repr(labels_of(dataset)).encode()).hexdigest()
    # Items that differ at each access, such as random windows, have no content that could be compared.
    content = "changing" if changing_item(dataset, key) is not None else content_hash(dataset)
    return {"items": len(dataset), "labels": labels, "content": content}
