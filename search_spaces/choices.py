"""`Choices`: the argument of a space's definition, from which student, supernet and cost tables are built.

A definition is a function of `Choices` that returns a module:

    def net(choose: Choices) -> nn.Module:
        width = choose.number("width", (8, 16))
        depth = choose.depth("depth", (1, 2))
        cells = choose.cells(depth, lambda j: choose.layer(block, 8 if j == 0 else width, width))
        return nn.Sequential(cells, nn.AdaptiveAvgPool2d(1), nn.Flatten(), choose.layer(nn.Linear, width, 10))

With *fixed* choices `width` is an integer, `choose.layer(block, a, b)` is `block(a, b)` and `choose.cells` a
`nn.Sequential`: the net is ordinary PyTorch code. With *open* choices the same code gives the supernet: `width` stands
for a number that a gate decides, and a layer holds its weights at their largest, which run as slices.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice


@dataclass(frozen=True, eq=False)
class Open:
    """Stands for a value that gates decide: one variable, or an expression of several.

    Attributes:
        kind: `number` or `kernel`, whose smaller values use slices of the weights; `op`, each value of which has
            weights of its own; `depth`.
        function: of the values of `arguments`; None for a variable. Of module level, so that a net can be pickled.
        arguments: other open values, or plain ones.
        name: of the variable.
        options: of the variable.
    """

    kind: str
    function: Callable[..., Any] | None = None
    arguments: tuple[Any, ...] = ()
    name: str = ""
    options: tuple[Choice, ...] = ()

    @property
    def variables(self) -> dict[str, Open]:
        """Name -> variable, for all that the value depends on, in order."""
        if self.function is None:
            return {self.name: self}
        found: dict[str, Open] = {}
        for argument in self.arguments:
            if isinstance(argument, Open):
                found |= argument.variables
        return found

    def at(self, chosen: Mapping[str, Any]) -> Any:
        """The value under these choices."""
        if self.function is None:
            return chosen[self.name]
        return self.function(*(evaluated(argument, chosen) for argument in self.arguments))

    def size_at(self, chosen: Mapping[str, Any]) -> Any:
        """The value under these choices; of a sum the tuple of its terms, each of which has weights of its own."""
        if self.function is not operator.add:
            return self.at(chosen)
        terms: list[int] = []
        for argument in self.arguments:
            value = argument.size_at(chosen) if isinstance(argument, Open) else argument
            terms += value if isinstance(value, tuple) else [value]
        return tuple(terms)

    def __mul__(self, other: Any) -> Open:
        return Open("number", operator.mul, (self, other))

    def __rmul__(self, other: Any) -> Open:
        return Open("number", operator.mul, (other, self))

    def __add__(self, other: Any) -> Open:
        return Open("number", operator.add, (self, other))

    def __radd__(self, other: Any) -> Open:
        return self if other == 0 else Open("number", operator.add, (other, self))  # so that sum() works

    def __floordiv__(self, other: Any) -> Open:
        return Open("number", operator.floordiv, (self, other))

    def _refuse(self, *others: Any) -> NoReturn:
        raise TypeError(
            f"{', '.join(self.variables)} is open in a supernet, so it is no number there; give it to choose.layer() "
            "or choose.cells(), with a function that builds the module"
        )

    __index__ = __int__ = __bool__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __mod__ = __rmod__ = __truediv__ = __rtruediv__ = __sub__ = __rsub__ = _refuse


def evaluated(value: Any, chosen: Mapping[str, Any]) -> Any:
    """A value that may be open, under these choices."""
    return value.at(chosen) if isinstance(value, Open) else value


class Chain(ABC):
    """What `Choices.chain` gives."""

    @abstractmethod
    def __call__(
        self,
        x: Tensor,
        step: Callable[[int, Tensor], Tensor],
        last: Callable[[int, Tensor], Tensor] | None = None,
        *,
        first: int = 0,
    ) -> Tensor:
        """`x` after step(first, x), …, step(depth − 1, x), and then last(depth, x) where it is given."""


class Choices(ABC):
    """What a definition asks for. Names are those of the space's variables, in the order of the calls."""

    @abstractmethod
    def number(self, name: str, options: Sequence[int]) -> int:
        """A number that layers are built with: a width, an expansion, a number of clusters.

        Smaller ones use the leading slices of one set of weights.

        Args:
            name: of the variable.
            options: to choose from, ascending.
        """

    @abstractmethod
    def kernel(self, name: str, options: Sequence[int]) -> int:
        """The side of a kernel; smaller ones use the centre of one set of weights. Arguments as of `number`."""

    @abstractmethod
    def op(self, name: str, options: Sequence[str | int]) -> Any:
        """An operator, or anything else each option of which has weights of its own. Arguments as of `number`."""

    @abstractmethod
    def depth(self, name: str, options: Sequence[int]) -> int:
        """How many cells there are, for `cells` and `steps`. Arguments as of `number`."""

    @abstractmethod
    def knob(self, name: str) -> Any:
        """The value of a knob, which is fixed for a supernet."""

    @abstractmethod
    def layer(
        self, build: Callable[..., nn.Module], inputs: Any, *args: Any, weights_of: Any = None, **kwargs: Any
    ) -> Any:
        """The module `build(inputs, *args, **kwargs)`, any of whose arguments may be choices.

        Its input is one tensor, whose dimension 1 and that of its output are the channels. In a supernet it runs at
        the choices that are drawn; outputs of several are mixed, narrower ones padded with zeros.

        Args:
            build: makes the module; of module level where the supernet is to be pickled.
            inputs: number of channels of the input.
            args: further arguments of `build`.
            weights_of: a value of `derive`; the layer has other weights for each.
            kwargs: further arguments of `build`.
        """

    @abstractmethod
    def steps(self, depth: int) -> Iterator[int]:
        """0 to depth − 1. What is chosen in step j has an effect only where there are more than j cells."""

    @abstractmethod
    def cells(self, depth: int, build: Callable[[int], nn.Module], whole: Any = None) -> nn.Sequential:
        """As many cells as the depth, one after another.

        Args:
            depth: of `depth`.
            build: number of the cell -> module.
            whole: a choice for which all cells run as a whole, see `whole`.
        """

    @abstractmethod
    def chain(self, depth: int) -> Chain:
        """Run a tensor through as many steps as the depth, for cells that are no `nn.Sequential`.

        Args:
            depth: of `depth`.
        """

    @abstractmethod
    def whole(self, value: Any, after: Sequence[Any] = ()) -> Callable[[Callable[[Any], Tensor]], Tensor]:
        """Run part of a forward pass as a whole at each drawn value of a choice, and mix only what comes out.

        Args:
            value: a choice.
            after: choices that are drawn before this one.

        Returns:
            A function of (value -> output).
        """

    @abstractmethod
    def variants(self, values: Sequence[Any], build: Callable[..., nn.Module]) -> nn.Module:
        """The module `build(*values)`; in a supernet one for every combination, with weights of its own.

        Args:
            values: of `op`.
            build: values -> module; it may choose and build layers itself.
        """

    @abstractmethod
    def derive(self, function: Callable[..., Any], *values: Any, kind: str = "number") -> Any:
        """A value that follows from choices.

        Args:
            function: of the values; of module level.
            values: of choices.
            kind: `number`, or `op` where layers have weights of their own for each.
        """


class FixedChoices(Choices):
    """Choices that are made: the definition gives the plain student.

    Args:
        chosen: name of a variable or knob -> choice.
    """

    def __init__(self, chosen: Mapping[str, Choice]) -> None:
        self._chosen = chosen

    def number(self, name: str, options: Sequence[int]) -> int:
        return int(self._chosen[name])

    def kernel(self, name: str, options: Sequence[int]) -> int:
        return int(self._chosen[name])

    def op(self, name: str, options: Sequence[str | int]) -> Any:
        return self._chosen[name]

    def depth(self, name: str, options: Sequence[int]) -> int:
        return int(self._chosen[name])

    def knob(self, name: str) -> Any:
        return self._chosen[name]

    def layer(
        self, build: Callable[..., nn.Module], inputs: Any, *args: Any, weights_of: Any = None, **kwargs: Any
    ) -> Any:
        return build(inputs, *args, **kwargs)

    def steps(self, depth: int) -> Iterator[int]:
        return iter(range(depth))

    def cells(self, depth: int, build: Callable[[int], nn.Module], whole: Any = None) -> nn.Sequential:
        return nn.Sequential(*(build(j) for j in range(depth)))

    def chain(self, depth: int) -> Chain:
        return FixedChain(depth)

    def whole(self, value: Any, after: Sequence[Any] = ()) -> Callable[[Callable[[Any], Tensor]], Tensor]:
        return FixedWhole(value)

    def variants(self, values: Sequence[Any], build: Callable[..., nn.Module]) -> nn.Module:
        return build(*values)

    def derive(self, function: Callable[..., Any], *values: Any, kind: str = "number") -> Any:
        return function(*values)


@dataclass(frozen=True)
class FixedWhole:
    """What `Choices.whole` gives for a choice that is made."""

    value: Any

    def __call__(self, run: Callable[[Any], Tensor]) -> Tensor:
        """The output at the value."""
        return run(self.value)


@dataclass(frozen=True)
class FixedChain(Chain):
    """What `Choices.chain` gives for a depth that is chosen."""

    depth: int

    def __call__(
        self,
        x: Tensor,
        step: Callable[[int, Tensor], Tensor],
        last: Callable[[int, Tensor], Tensor] | None = None,
        *,
        first: int = 0,
    ) -> Tensor:
        for j in range(first, self.depth):
            x = step(j, x)
        return x if last is None else last(self.depth, x)
