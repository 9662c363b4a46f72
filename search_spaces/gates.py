"""Gates: learnable choices among candidates, and the estimators that draw from them.

An estimator is a function from logits to a `Draw`: which candidates run, and with which weights. A candidate that is
not in the draw does not run at all, so the cost of a forward pass follows from the estimator:

- `softmax`: all candidates, weighted by their probabilities (Liu et al., DARTS, ICLR 2019, eq. 2).
- `gumbel`: all candidates, weighted by a Gumbel-softmax sample (Jang et al., ICLR 2017; Wu et al., FBNet, CVPR 2019).
- `straight_through`: one candidate, the arg-max of the Gumbel-softmax sample; its weight is exactly 1 and carries the
  gradient of the sample (Dong and Yang, GDAS, CVPR 2019, eq. 4-6).
- `two_path`: one candidate while only weights train; while gates train a second one runs beside it and the gradient
  goes to the renormalised pair (Cai et al., ProxylessNAS, ICLR 2019, section 3.2.1). Deviation: the pair is drawn by
  Gumbel top-2, which is sampling without replacement from the same distribution.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice


@dataclass(frozen=True)
class Draw:
    """The candidates that a gate runs in one forward pass.

    Attributes:
        indices: candidates that run, in ascending order.
        weights: (len(indices),) their weights; the gradient of the gate flows through them.
    """

    indices: tuple[int, ...]
    weights: Tensor

    @property
    def single(self) -> int | None:
        """The only candidate that runs, if it is only one."""
        return self.indices[0] if len(self.indices) == 1 else None

    def combine(self, run: Callable[[int], Tensor]) -> Tensor:
        """Σ weights[i] · run(indices[i]); a single candidate without gradient is not multiplied."""
        if len(self.indices) == 1:
            output = run(self.indices[0])
            return output * self.weights[0].to(output.dtype) if self.weights.requires_grad else output
        # A running sum, not a stack: the memory format stays, and depthwise convolutions depend on it.
        total: Tensor | None = None
        for index, weight in zip(self.indices, self.weights, strict=True):
            output = run(index)
            part = output * weight.to(output.dtype)
            total = part if total is None else total + part
        assert total is not None, "a draw holds at least one candidate"
        return total


Estimator = Callable[[Tensor, float, torch.Generator | None], Draw]


def _gumbel(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    # Drawn on the CPU, so that a seed gives the same draw on every device.
    uniform = torch.empty(logits.shape, dtype=torch.float64).exponential_(generator=generator)
    return (-uniform.clamp_min(1e-30).log()).to(dtype=logits.dtype, device=logits.device)


def softmax(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Draw:
    """All candidates, weighted by softmax(logits / temperature).

    A candidate whose weight rounds to zero does not run: its part of the output and of the gradients is zero.
    """
    weights = (logits / temperature).softmax(0)
    indices = tuple(i for i, weight in enumerate(weights.tolist()) if weight)
    return Draw(indices, weights if len(indices) == len(weights) else weights[list(indices)])


def gumbel(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Draw:
    """All candidates, weighted by softmax((logits + Gumbel noise) / temperature)."""
    return softmax(logits + _gumbel(logits, generator), temperature, generator)


def straight_through(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Draw:
    """One candidate with weight 1, whose gradient is that of its Gumbel-softmax sample."""
    sample = ((logits + _gumbel(logits, generator)) / temperature).softmax(0)
    index = int(sample.argmax())
    weight = sample[index : index + 1]
    return Draw((index,), weight - weight.detach() + 1)  # in this order the value is exactly 1


def two_path(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Draw:
    """One candidate; with gate gradients a second one runs at weight 0 so that the pair has a gradient.

    `temperature` has no part in this estimator: its probabilities are used as they are.
    """
    noisy = logits.detach() + _gumbel(logits, generator)
    if not logits.requires_grad or len(logits) == 1:
        return Draw((int(noisy.argmax()),), torch.ones_like(noisy[:1]))
    pair = noisy.topk(2).indices.sort().values
    weights = logits[pair].softmax(0)
    first = bool(torch.rand((), generator=generator) < float(weights[0].detach()))
    hard = torch.tensor([first, not first], dtype=weights.dtype, device=weights.device)
    return Draw((int(pair[0]), int(pair[1])), weights - weights.detach() + hard)


ESTIMATORS: dict[str, Estimator] = {
    "straight_through": straight_through,
    "softmax": softmax,
    "gumbel": gumbel,
    "two_path": two_path,
}


def estimator_named(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        ValueError: no such estimator.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown gate estimator {name!r}; choose from {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


@dataclass(frozen=True)
class TemperatureSchedule:
    """Geometric interpolation of the gate temperature over the search, from `start` to `end`."""

    start: float = 2.0
    end: float = 0.5

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0):
            raise ValueError(f"gate temperatures must be above 0, but got start={self.start}, end={self.end}")

    def at(self, progress: float) -> float:
        """Temperature at `progress` in [0, 1]."""
        progress = min(max(progress, 0.0), 1.0)
        return float(self.start * (self.end / self.start) ** progress)


@dataclass(frozen=True)
class Condition:
    """What the logits of conditional gates depend on.

    Attributes:
        budget: cost that an architecture may have, in the units of the cost table.
        setting: number of the combination of knobs, where one supernet serves several.
    """

    budget: float
    setting: int = 0


@dataclass
class GateControl:
    """How the gates of one supernet draw at present; shared by all of them.

    Attributes:
        estimator: used in training mode. In evaluation mode a gate takes its most probable candidate.
        temperature: of the estimator.
        generator: source of the noise; None is torch's global one.
        condition: what conditional gates compute their logits for; None where there are none.
        pinned: gate name -> index, which overrides every draw.
        draws: the draws of the present forward pass, so that a gate that is asked twice answers the same.
        meter: measures the searchable parts of a forward pass instead of running them, see `measure`.
    """

    estimator: Estimator = straight_through
    temperature: float = 1.0
    generator: torch.Generator | None = None
    condition: Condition | None = None
    pinned: dict[str, int] = field(default_factory=dict)
    draws: dict[str, Draw] = field(default_factory=dict)
    meter: Any = None

    @contextmanager
    def fixed(self, name: str, index: int) -> Iterator[None]:
        """Within this context the gate of that name draws one choice, without a gradient."""
        before = self.draws[name]
        self.draws[name] = Draw((index,), before.weights.detach().new_ones(1))
        try:
            yield
        finally:
            self.draws[name] = before

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "draws": {}}  # they belong to one forward pass, whose graph cannot be copied


class Gate(nn.Module):
    """A choice among `choices` with one learnable logit each, all zero at the start.

    A subclass may make the logits a function of a condition by overriding `logits`; nothing else reads the parameter.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__()
        if not choices or len(set(choices)) != len(choices):
            raise ValueError(f"a gate needs at least one choice and no duplicates, but got {list(choices)}")
        self.choices = tuple(choices)
        self.name = ""  # set by the supernet: the path of the variable
        self.control = GateControl()
        self.gate_logits = nn.Parameter(torch.zeros(len(choices)))

    def logits(self) -> Tensor:
        """(num_choices,) logits under the present condition; this gate has the same under every condition."""
        return self.gate_logits

    def probabilities(self) -> Tensor:
        """(num_choices,) softmax of the logits, without temperature and noise."""
        return self.logits().softmax(0)

    def draw(self) -> Draw:
        """The draw of this forward pass: pinned, sampled in training mode, or the most probable in evaluation mode."""
        if self.name and self.name in self.control.draws:
            return self.control.draws[self.name]
        logits = self.logits()
        if self.name in self.control.pinned:
            draw = Draw((self.control.pinned[self.name],), torch.ones_like(logits[:1]).detach())
        elif self.training:
            draw = self.control.estimator(logits, self.control.temperature, self.control.generator)
        else:
            draw = Draw((int(logits.argmax()),), torch.ones_like(logits[:1]).detach())
        if self.name:
            self.control.draws[self.name] = draw
        return draw

    def extra_repr(self) -> str:
        return f"choices={self.choices}"


class BudgetGate(Gate):
    """A gate whose logits are a function of the budget: linear in log cost between knots, constant beyond them.

    Args:
        choices: as of `Gate`.
        knots: costs in ascending order, at each of which the gate has logits of its own.
        num_settings: combinations of knobs, for each of which it has logits of its own.

    Raises:
        ValueError: the knots do not ascend or are not above 0.
    """

    def __init__(self, choices: Sequence[Choice], knots: Sequence[float], num_settings: int = 1) -> None:
        super().__init__(choices)
        if not knots or knots[0] <= 0 or any(low >= high for low, high in pairwise(knots)):
            raise ValueError(f"knots of a gate must be above 0 and ascend, but are {list(knots)}")
        self.log_knots = tuple(math.log(knot) for knot in knots)
        self.gate_logits = nn.Parameter(torch.zeros(num_settings, len(knots), len(self.choices)))

    def logits(self) -> Tensor:
        """(num_choices,) logits under the present condition.

        Raises:
            ValueError: there is no condition.
        """
        condition = self.control.condition
        if condition is None:
            raise ValueError(f"gate {self.name!r} depends on the budget, so it needs one; call `condition` first")
        at_knots = self.gate_logits[condition.setting]
        lower, share = position(condition.budget, self.log_knots)
        if share == 0:
            return at_knots[lower]
        return torch.lerp(at_knots[lower], at_knots[lower + 1], share)


def position(budget: float, log_knots: Sequence[float]) -> tuple[int, float]:
    """Between which knots a budget lies: (index of the lower one, share of the way to the next one, below 1)."""
    value = math.log(budget)
    if value <= log_knots[0]:
        return 0, 0.0
    if value >= log_knots[-1]:
        return len(log_knots) - 1, 0.0
    lower = bisect_right(log_knots, value) - 1
    return lower, (value - log_knots[lower]) / (log_knots[lower + 1] - log_knots[lower])


GateFactory = Callable[[Sequence[Choice]], Gate]


def named_gate(make: GateFactory, choices: Sequence[Choice], name: str) -> Gate:
    """A gate for the variable of that name."""
    gate = make(choices)
    gate.name = name
    return gate
