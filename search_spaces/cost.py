"""What an architecture costs: exact integers for a choice, a differentiable expectation for gates."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas_kd.search_spaces.arch import Choice


@dataclass(frozen=True, eq=False)
class CostTerm:
    """The cost of one part of the net, which depends on one or several gates together.

    Attributes:
        name: of the part, for people.
        variables: names of the gates, one an axis of the table.
        costs: (num_choices of each variable ...) int64.
    """

    name: str
    variables: tuple[str, ...]
    costs: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CostTable:
    """The costs of all architectures of one supernet as a sum of terms.

    Attributes:
        variables: gate -> its choices, in the order of the net.
        terms: the parts whose cost depends on a choice, in the order of the net.
        constant: cost of the parts that are always there.
        uncounted: operators of the candidates that are free by convention.
        period: frames that the sums are over. With a period of K, terms and constant are those of one key-frame
            interval, and what an architecture costs is their share of a frame, rounded up.
        unit: of costs: `flops`, `nanoseconds`, `parameters` or `bytes`.
    """

    variables: Mapping[str, tuple[Choice, ...]]
    terms: tuple[CostTerm, ...]
    constant: int
    uncounted: tuple[str, ...] = ()
    period: int = 1
    unit: str = "flops"

    def __post_init__(self) -> None:
        for term in self.terms:
            shape = tuple(len(self.variables[name]) for name in term.variables)
            if term.costs.shape != shape:
                raise ValueError(f"cost term {term.name!r} must have the shape {shape}, but has {term.costs.shape}")

    def cost(self, choices: Mapping[str, Choice]) -> int:
        """The cost of one architecture, a frame where there is a period.

        Args:
            choices: gate -> choice. A gate that has no effect under the other choices may be missing.
        """
        return -(-self.total(choices) // self.period)

    def total(self, choices: Mapping[str, Choice]) -> int:
        """The cost of one architecture over the whole period.

        Args:
            choices: gate -> choice. A gate that has no effect under the other choices may be missing.
        """
        index = {name: values.index(choices[name]) if name in choices else 0 for name, values in self.variables.items()}
        return self.constant + sum(
            int(term.costs[tuple(index[name] for name in term.variables)]) for term in self.terms
        )

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Expected cost for independent gates, a float64 scalar, differentiable.

        With one-hot probabilities it is exactly the cost of that architecture (before rounding up, where there is a
        period): products and sums of integers below 2**53 are exact in float64.

        Args:
            probabilities: gate -> (num_choices,).
        """
        device = next(iter(probabilities.values())).device if probabilities else torch.device("cpu")
        exact = {name: p.double() for name, p in probabilities.items()}
        total = torch.tensor(float(self.constant), dtype=torch.float64, device=device)
        for i, (term, equation) in enumerate(zip(self.terms, self._equations, strict=True)):
            operands = [exact[name] for name in term.variables]
            total = total + torch.einsum(equation, self._tensor(i, device), *operands)
        return total / self.period if self.period > 1 else total

    def to_json(self) -> dict[str, Any]:
        """The table as JSON values, for `from_json`."""
        return {
            "unit": self.unit,
            "period": self.period,
            "constant": self.constant,
            "uncounted": list(self.uncounted),
            "variables": {name: list(choices) for name, choices in self.variables.items()},
            "terms": [
                {"name": term.name, "variables": list(term.variables), "costs": term.costs.tolist()}
                for term in self.terms
            ],
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CostTable:
        """The table that `to_json` gave.

        Raises:
            ValueError: a key is missing, or a term's shape is not that of its variables.
        """
        if missing := {"unit", "period", "constant", "uncounted", "variables", "terms"} - value.keys():
            raise ValueError(f"a cost table needs {', '.join(sorted(missing))}; write it with CostTable.to_json")
        terms = tuple(
            CostTerm(str(t["name"]), tuple(t["variables"]), np.asarray(t["costs"], dtype=np.int64))
            for t in value["terms"]
        )  # fmt: skip
        variables = {str(name): tuple(choices) for name, choices in value["variables"].items()}
        return cls(
            variables, terms, int(value["constant"]), tuple(value["uncounted"]), int(value["period"]),
            str(value["unit"]),
        )  # fmt: skip

    @cached_property
    def _equations(self) -> tuple[str, ...]:
        letters = [string.ascii_lowercase[: len(term.variables)] for term in self.terms]
        return tuple(f"{axes},{','.join(axes)}->" for axes in letters)

    @cached_property
    def _tensors(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    def _tensor(self, term: int, device: torch.device) -> Tensor:
        key = (term, device)
        if key not in self._tensors:
            self._tensors[key] = torch.from_numpy(self.terms[term].costs.astype(np.float64)).to(device)
        return self._tensors[key]
