"""Which weights a training leaves: their average over the steps, those of the best epoch, or the last ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nas_kd.training.settings import TrainingConfig

Validate = Callable[[], float]
"""The score of the weights at present, of which more is better."""


class AveragedWeights:
    """An exponential moving average of the weights and of the other floating-point state of a net.

    Args:
        module: whose state is averaged, from its present one on.
        decay: share of the average that a step keeps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._average = {name: tensor.detach().clone() for name, tensor in self._floating().items()}

    def _floating(self) -> dict[str, Tensor]:
        return {name: t for name, t in self._module.state_dict().items() if t.is_floating_point()}

    def step(self) -> None:
        """Take the present state into the average."""
        present = self._floating()
        self._update([self._average[name] for name in present], list(present.values()), 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the net has the average."""
        before = {name: tensor.clone() for name, tensor in self._floating().items()}
        self.apply()
        try:
            yield
        finally:
            self._module.load_state_dict(before, strict=False)

    def apply(self) -> None:
        """Give the net the average."""
        self._module.load_state_dict(self._average, strict=False)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for name, tensor in state.items():
            self._average[name].copy_(tensor)


class BestEpoch:
    """The weights after the epoch that was best on the validation split; of equal ones, the first.

    Args:
        module: that is trained.
        validate: the score of its present weights.
        patience: epochs without a better score after which the training ends; None never ends it.
    """

    def __init__(self, module: nn.Module, validate: Validate, patience: int | None) -> None:
        self._module, self._validate, self._patience = module, validate, patience
        self.score, self.epoch, self._seen = -math.inf, 0, 0
        self._state: dict[str, Tensor] = {}

    def see(self, epoch: int) -> float:
        """Validate the weights after so many epochs; returns their score."""
        score, self._seen = self._validate(), epoch
        if score > self.score:
            self.score, self.epoch = score, epoch
            self._state = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}
        return score

    @property
    def has_ended(self) -> bool:
        """Whether patience is at its end."""
        return self._patience is not None and self._seen - self.epoch >= self._patience

    def apply(self) -> None:
        """Give the net the best weights."""
        self._module.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"score": self.score, "epoch": self.epoch, "seen": self._seen, "state": self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.score, self.epoch, self._seen = float(state["score"]), int(state["epoch"]), int(state["seen"])
        device = next(self._module.parameters()).device
        self._state = {name: tensor.to(device) for name, tensor in state["state"].items()}


class KeptWeights:
    """The weights that a training leaves, by `ema` and `keep` of its config.

    Args:
        module: that is trained.
        config: of the training.
        validate: the score of its present weights; for `keep: best`.

    Raises:
        ValueError: `keep: best` without `validate`.
    """

    def __init__(self, module: nn.Module, config: TrainingConfig, validate: Validate | None) -> None:
        self._module, self._epochs = module, config.epochs
        self._average = None if config.ema is None else AveragedWeights(module, config.ema)
        self._best: BestEpoch | None = None
        if config.keep == "best":
            if validate is None:
                raise ValueError("keep: best needs a validation split; give `validate`, or take `keep: last`")
            self._best = BestEpoch(module, validate, config.patience)

    @property
    def parts(self) -> dict[str, AveragedWeights | BestEpoch]:
        """What a checkpoint keeps."""
        parts = {"average": self._average, "best": self._best}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def has_ended(self) -> bool:
        """Whether patience is at its end."""
        return self._best is not None and self._best.has_ended

    def begin(self) -> None:
        """Look at the weights before the first epoch."""
        if self._best is not None:
            self._module.eval()
            self._best.see(0)

    def step(self) -> None:
        """Look at the weights after a step."""
        if self._average is not None:
            self._average.step()

    def end_epoch(self, epochs: int) -> dict[str, float]:
        """Look at the weights after so many epochs; returns their `validation` score where there is one."""
        if self._best is None:
            return {}
        self._module.eval()
        with self._average.applied() if self._average is not None else nullcontext():
            return {"validation": self._best.see(epochs)}

    def apply(self) -> int:
        """Give the net the weights that are kept; returns the number of epochs after which it had them."""
        if self._best is not None:
            self._best.apply()
            return self._best.epoch
        if self._average is not None:
            self._average.apply()
        return self._epochs
