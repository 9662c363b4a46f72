"""`Supernet`: all candidates of a space in one net, whose gates are trained and from which a student is derived."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nas_kd.search_spaces.arch import ArchSpec, Choice
from nas_kd.search_spaces.cost import CostTable
from nas_kd.search_spaces.gates import Gate, GateControl, GateFactory, estimator_named
from nas_kd.search_spaces.knapsack import InfeasibleBudgetError, Knapsack, Limit, cost_range, most_expensive_within
from nas_kd.search_spaces.space import SearchSpace, StandsForAnother, gates_of

BUDGET_SHARE = 0.95  # a derived student uses at least this share of its budget, or of the most expensive one within it
MAX_EQUAL = 64  # solutions that are looked at for each architecture, in a space that does not tell equal ones apart

Limits = Mapping[str, float]


class Supernet(nn.Module):
    """A differentiable net over all architectures of `space` at fixed knobs.

    In training mode a forward pass draws from the gates; in evaluation mode it runs the most probable candidates.

    Args:
        space: what is searched.
        knobs: values of the space's knobs; those not given take their largest value.
        estimator: `straight_through` (one path, the default), `softmax`, `gumbel` or `two_path`.
        temperature: of the estimator; change it with `gate_temperature`.
        seed: of the gates' noise.
        make_gate: builds a gate from its choices.
        table: what architectures cost, for the expected cost, the range and budgets, in place of the space's FLOPs: a
            latency table, say.
        figures: figure -> tables, of costs that can be limited beside those of the space.

    Raises:
        ValueError: unknown estimator, knob or value; a gate that is no variable of the space; another
            space's table.

    Examples:
        >>> supernet = nas_kd.Supernet(nas_kd.load_config("demo.yaml").space.build(4))
        >>> least, most = supernet.cost_range()
        >>> student = supernet.derive(max_cost=(least + most) / 2)
        >>> any(isinstance(part, nas_kd.Edge) for part in student.modules())
        False
    """

    def __init__(
        self,
        space: SearchSpace,
        knobs: Mapping[str, Choice] | None = None,
        *,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
        make_gate: GateFactory = Gate,
        table: CostTable | None = None,
        figures: Mapping[str, tuple[CostTable, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self.knobs = space.knobs_with(knobs)
        self.control = GateControl(estimator_named(estimator), temperature, torch.Generator().manual_seed(seed))
        self.network = space.network(self.knobs, make_gate)
        self.gates = gates_of(self.network)
        if self.gates.keys() != space.variables.keys():
            odd = sorted(self.gates.keys() ^ space.variables.keys())
            raise ValueError(f"each variable of a space needs one gate of its name; without a partner: {odd}")
        for gate in self.gates.values():
            gate.control = self.control
        with torch.random.fork_rng(devices=[]):  # measuring builds modules, or not where costs are known already:
            own = table or space.cost_table(self.knobs)  # what is drawn after this must not depend on that
        if dict(own.variables) != dict(space.variables):
            odd = sorted(
                n for n in {**own.variables, **space.variables} if own.variables.get(n) != space.variables.get(n)
            )
            raise ValueError(
                f"a cost table must be of the space's own variables, but it differs in {', '.join(odd)}; measure again"
            )
        self.cost_table, self.figures = own, dict(figures or {})

    @property
    def gate_temperature(self) -> float:
        """Temperature of the gate estimator."""
        return self.control.temperature

    @gate_temperature.setter
    def gate_temperature(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f"the gate temperature must be above 0, but got {value}")
        self.control.temperature = value

    def forward(self, *inputs: Any) -> Any:
        """The net's output with one draw of every gate that it reaches."""
        self.control.draws.clear()
        return self.network(*inputs)

    def gate_parameters(self) -> list[nn.Parameter]:
        """Parameters of the gates, disjoint from `weight_parameters`; both together are all."""
        return [p for gate in self.gates.values() for p in gate.parameters()]

    def named_parts(self) -> dict[str, nn.Module]:
        """Name -> module of the network, the network itself as "".

        A layer holds the modules that students have in its place, and theirs are found by the names that students have,
        too: of several, those of the first.
        """
        modules = dict(self.network.named_modules())
        for name, layer in list(modules.items()):
            if isinstance(layer, StandsForAnother):
                for inner, child in layer.student_module().named_modules():
                    if inner:
                        modules.setdefault(f"{name}.{inner}", child)
        return modules

    def weight_parameters(self) -> list[nn.Parameter]:
        """Parameters of the candidates and of the fixed parts."""
        owned = {id(p) for p in self.gate_parameters()}
        return [p for p in self.network.parameters() if id(p) not in owned]

    def probabilities(self) -> dict[str, Tensor]:
        """Gate -> (num_choices,), differentiable."""
        return {name: self.gates[name].probabilities() for name in self.space.variables}

    def gate_entropy(self) -> float:
        """Mean entropy of the gates' probabilities, each as a share of the largest that it can have."""
        with torch.no_grad():
            entropies = [
                float(-(p * p.clamp_min(1e-12).log()).sum()) / math.log(len(p))
                for p in self.probabilities().values()
                if len(p) > 1
            ]
        return sum(entropies) / max(len(entropies), 1)

    def expected_cost(self) -> Tensor:
        """Expected cost of one input under the gates' probabilities: a float64 scalar, differentiable."""
        return self.cost_table.expected(self.probabilities())

    def cost_range(self) -> tuple[int, int]:
        """Cost of the cheapest and of the most expensive architecture at these knobs."""
        return cost_range(self.cost_table)

    def arch(
        self, max_cost: float | None = None, *, limits: Limits | None = None, min_share: float = BUDGET_SHARE
    ) -> ArchSpec:
        """The most probable architecture, exactly, within the budget and the limits; see `archs`."""
        return self.archs(1, max_cost, limits=limits, min_share=min_share)[0]

    def archs(
        self, k: int, max_cost: float | None = None, *, limits: Limits | None = None, min_share: float = BUDGET_SHARE
    ) -> list[ArchSpec]:
        """The k most probable architectures, exactly, within the budget and the limits; the most probable one first.

        Args:
            k: number of architectures; all are different nets.
            max_cost: budget; without it, there is none.
            limits: figure -> most, inclusive: `flops`, those of `SearchSpace.figures`, and the supernet's own.
            min_share: architectures use at least this share of the budget; where the space has no such ones, at least
                this share of what the most expensive one within the budget costs; and where the limits rule these
                out, they may be cheaper. 0 asks for the most probable ones at or below the budget, however cheap.

        Returns:
            k architectures, fewer where there are not so many.

        Raises:
            InfeasibleBudgetError: no architecture is within the budget and the limits.
            ValueError: a figure that the space does not have.
        """
        logits, knapsack = self._logits(), self._knapsack(limits or {})
        if max_cost is None and not limits and k == 1:  # what evaluation mode runs
            return [self._arch_of({name: int(values.argmax()) for name, values in logits.items()})]
        for low, high in self._bands(math.inf if max_cost is None else math.floor(max_cost), min_share, bool(limits)):
            try:
                return self._most_probable(knapsack, logits, low, high, k)
            except InfeasibleBudgetError:
                continue
        try:
            knapsack.check(math.inf if max_cost is None else max_cost)
        except InfeasibleBudgetError as error:
            raise InfeasibleBudgetError(
                f"limits cannot be met in space {self.space.name!r} at {self.knobs}: {error}; raise the limit"
            ) from None
        raise AssertionError("what can be met was found")

    def _bands(self, high: float, min_share: float, is_limited: bool) -> Iterator[tuple[float, float]]:
        """The ranges of costs in which architectures are looked for, one after the other."""
        if math.isfinite(high):
            least = self.cost_range()[0]
            if high < least:
                raise InfeasibleBudgetError(
                    f"max_cost must be at least {least:,}, the cheapest architecture of space {self.space.name!r} at "
                    f"{self.knobs}, but it is {high:,}; raise the budget or shrink the space"
                )
            yield min_share * high, high
            most = most_expensive_within(self.cost_table, int(high))  # nothing is so close to the budget
            yield min_share * most, most
        if is_limited or not math.isfinite(high):
            yield -math.inf, high

    def _knapsack(self, limits: Limits) -> Knapsack:
        return Knapsack(
            self.cost_table,
            [Limit(name, self.figure_tables(name), high) for name, high in limits.items()],
            self.space.effects(self.knobs),
        )

    def figure_tables(self, name: str) -> tuple[CostTable, ...]:
        """The tables of a figure that can be limited, at the present knobs.

        Raises:
            ValueError: there is no such figure.
        """
        return self.figures[name] if name in self.figures else self.space.figure_tables(name, self.knobs)

    def _most_probable(
        self, knapsack: Knapsack, logits: Mapping[str, npt.NDArray[np.float64]], low: float, high: float, k: int
    ) -> list[ArchSpec]:
        """Different architectures; a space that does not say which choices lack an effect gives equal ones, too."""
        number = k
        while True:
            found: dict[str, ArchSpec] = {}
            solutions = knapsack.best(logits, low, high, number)
            for index in solutions:
                arch = self._arch_of(index)
                found.setdefault(arch.arch_id, arch)
            if len(found) >= k or len(solutions) < number or number >= MAX_EQUAL * k:
                return list(found.values())[:k]
            number *= 4

    def log_probability(self, arch: ArchSpec) -> float:
        """Sum over all gates of the logarithms of their probabilities; gates without effect count with their most
        probable choice, so that a shallow net has no advantage over a deep one."""
        total = 0.0
        for name, logits in self._logits().items():
            top = logits.max()
            own = logits[self.space.variables[name].index(arch.choices[name])] if name in arch.choices else top
            total += float(own - top - np.log(np.exp(logits - top).sum()))
        return total

    def _logits(self) -> dict[str, npt.NDArray[np.float64]]:
        """Gate -> logits: log-probabilities but for a constant, and never -inf where a probability rounds to zero."""
        values = {}
        with torch.no_grad():
            for name in self.space.variables:
                logits = self.gates[name].logits()
                if not bool(logits.isfinite().all()):
                    raise ValueError(f"the logits of gate {name!r} must be finite, but are {logits.tolist()}")
                values[name] = logits.double().cpu().numpy()
        return values

    def _arch_of(self, index: Mapping[str, int]) -> ArchSpec:
        return self.space.arch({**self.knobs, **{name: self.space.variables[name][i] for name, i in index.items()}})

    def derive(
        self, max_cost: float | None = None, *, limits: Limits | None = None, arch: ArchSpec | None = None
    ) -> nn.Module:
        """A plain module with the weights of the chosen architecture, independent of this supernet.

        In evaluation mode it computes what the supernet computes with its gates pinned to that architecture.

        Args:
            max_cost: as in `archs`.
            limits: as in `archs`.
            arch: derive this one instead of the most probable one.
        """
        if arch is not None and (max_cost is not None or limits):
            raise ValueError("derive takes max_cost or arch, but got both; give the one that decides")
        arch = arch if arch is not None else self.arch(max_cost, limits=limits)
        reference = next(self.network.parameters())
        student = self.space.student(arch).to(device=reference.device, dtype=reference.dtype)
        self.space.inherit(self.network, student, arch.choices)
        return student.train(self.training)

    @contextmanager
    def pinned(self, arch: ArchSpec) -> Iterator[Supernet]:
        """Within this context every draw is the choice of `arch`."""
        self.space.check(arch)
        before = self.control.pinned
        self.control.pinned = {
            name: self.space.variables[name].index(choice)
            for name, choice in arch.choices.items()
            if name in self.space.variables
        }
        try:
            yield self
        finally:
            self.control.pinned = before
