"""The trackers by name, and which of them a campaign has."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from nas_kd.trials.trackers.tracker import Place, Tracker


class TrackerError(ValueError):
    """A tracker is unknown, or its library is not installed."""


@dataclass(frozen=True)
class Kind:
    """A kind of tracker.

    Attributes:
        home: module that has the class, and its name.
        library: that must be installed.
        install: what pip installs.
        by_default: viewer; where it is installed, campaigns that name no trackers have this one.
    """

    home: tuple[str, str]
    library: str
    install: str
    by_default: str | None = None


TRACKERS = {
    "tensorboard": Kind(
        ("nas_kd.trials.trackers.tensorboard", "TensorBoard"), "tensorboardX", "tensorboardX", by_default="tensorboard"
    ),
    "mlflow": Kind(("nas_kd.trials.trackers.mlflow", "MLflow"), "mlflow", "'nas-kd[mlflow]'"),
    "wandb": Kind(("nas_kd.trials.trackers.wandb", "WeightsAndBiases"), "wandb", "'nas-kd[wandb]'"),
}


def find_trackers(names: Sequence[str] | None) -> dict[str, Callable[[Place], Tracker]]:
    """Name of each tracker -> what makes it.

    Args:
        names: of the trackers; None for those that campaigns have by default.

    Raises:
        TrackerError: there is no such tracker, or its library is not installed.
    """
    if names is None:
        names = [name for name, kind in TRACKERS.items() if kind.by_default and _is_installed(kind.by_default)]
    for name in names:
        if name not in TRACKERS:
            raise TrackerError(f"trackers: {name!r} is unknown; choose from {', '.join(TRACKERS)}")
        if not _is_installed(TRACKERS[name].library):
            raise TrackerError(f"trackers: {name} is not installed; pip install {TRACKERS[name].install}")
    return {name: _maker(TRACKERS[name]) for name in names}


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _maker(kind: Kind) -> Callable[[Place], Tracker]:
    def make(place: Place) -> Tracker:
        module, name = kind.home
        return cast(Tracker, getattr(importlib.import_module(module), name)(place))

    return make
