"""`Taps` reads the feature maps of any module by the names of its submodules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nas_kd.search_spaces import Supernet


@dataclass(frozen=True)
class ModelOutput:
    """The outputs of a model for one batch.

    Attributes:
        logits: (N, num_classes), or whatever the task reads.
        features: module name -> its output.

    Examples:
        >>> nas_kd.ModelOutput(torch.zeros(2, 4)).logits.shape
        torch.Size([2, 4])
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


class TapError(ValueError):
    """A module cannot be tapped.

    Attributes:
        name: of the module.
        why: what follows "module … of the net", such as "does not run".
    """

    def __init__(self, name: str, why: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name, self.why = name, why


@runtime_checkable
class Viewed(Protocol):
    """A net around another one, whose modules are tapped by the names that they have there."""

    @property
    def tapped(self) -> nn.Module:
        """The inner net."""
        ...

    @property
    def seen_size(self) -> tuple[int, int] | None:
        """(H, W) that the inner net sees, where it is not that of the input."""
        ...

    def as_map(self, name: str, output: Any) -> Any:
        """The output of a module in the form in which maps are compared, called within a pass."""
        ...


class Taps:
    """Forward hooks on named submodules, for as long as the object is open.

    A map that the module overwrites later in its pass (`out += identity`) is kept as it was: the first pass that shows
    it runs a second time, with copies of such maps, which later passes keep at once.

    Args:
        module: any module; of a `Supernet`, its network is tapped, whose module names are those of its students.
        names: names of its submodules, as in `named_modules()`.
        run: what runs it, where that is not the module itself, such as `torch.compile(module)`.

    Raises:
        TapError: a name that the module does not have; the sentence names some that it has.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> taps = nas_kd.Taps(net, ["1"])
        >>> taps(torch.zeros(2, 3, 8, 8)).features["1"].shape
        torch.Size([2, 8, 6, 6])
        >>> taps.close()
    """

    def __init__(self, module: nn.Module, names: Iterable[str], run: Callable[..., Any] | None = None) -> None:
        self.module, self._run = module, module if run is None else run
        self._copies_all = run is not None  # compiled code does not tell that it overwrites a map
        self.names = tuple(dict.fromkeys(names))
        modules = tappable(module)
        if isinstance(module, Viewed):  # a space that is made of its layers names them as the whole has them
            modules = {**dict(module.named_modules()), **modules}
        for name in self.names:
            if name not in modules:
                raise TapError(
                    name,
                    "does not exist",
                    f"{type(module).__name__} has no module {name!r} to tap; it has {sketch(tappable(module))}",
                )
        self._seen: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._overwritten: set[str] = set()
        self._hooks = [
            modules[name].register_forward_hook(lambda _m, _i, output, name=name: self._keep(name, output))
            for name in self.names
        ]

    def _keep(self, name: str, output: Any) -> None:
        if isinstance(self.module, Viewed):
            output = self.module.as_map(name, output)
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise TapError(
                name,
                f"gives a {kind} and not one tensor",
                f"a tapped module must return one tensor, but {name!r} returns a {kind}",
            )
        self._seen[name] = output.clone() if self._copies_all or name in self._overwritten else output
        self._versions[name] = self._seen[name]._version

    def __call__(self, *inputs: Any) -> ModelOutput:
        """Run the module and return its output with the tapped maps.

        Raises:
            TapError: a tapped module did not run, or gives no tensor.
            ValueError: the output is no tensor.
        """
        self._seen.clear()
        logits = self._run(*inputs)
        if changed := {name for name, kept in self._seen.items() if kept._version != self._versions[name]}:
            self._overwritten |= changed
            return self(*inputs)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"{type(self.module).__name__} must return logits as one tensor, but returns a "
                f"{type(logits).__name__}; wrap it in a module that picks them"
            )
        features = dict(self._seen)
        self._seen.clear()
        if missing := sorted(set(self.names) - features.keys()):
            raise TapError(
                missing[0],
                "does not run as a whole",
                f"tapped modules did not run in the forward pass: {', '.join(missing)}",
            )
        return ModelOutput(logits, features)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shapes_given(module: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of what each submodule gives for an example, in the order in which they finish; only of those that run and
    give one tensor, and so can be tapped."""
    return {name: passed.shape for name, passed in passes(module, example).items()}


@dataclass(frozen=True)
class Passed:
    """What a submodule did in a forward pass.

    Attributes:
        shape: of what it gave.
        read: height and width of the map that it read; None where it read no map.
        frames_read: of that map; 1 where it had none, or they are not known.
    """

    shape: tuple[int, ...]
    read: tuple[int, int] | None
    frames_read: int = 1


def passes(module: nn.Module, example: Tensor) -> dict[str, Passed]:
    """What each submodule does for an example, in the order in which they finish; only of those that run and give one
    tensor, and so can be tapped."""
    found: dict[str, Passed] = {}

    def watch(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        given = output
        if isinstance(module, Viewed):
            output = module.as_map(name, output)
        found.pop(name, None)
        if isinstance(output, Tensor):
            first = inputs[0] if inputs else None
            is_map = isinstance(first, Tensor) and first.ndim in (4, 5)
            read = (first.shape[-2], first.shape[-1]) if isinstance(first, Tensor) and is_map else None
            # Of what gives no map as it is, the axes of the input are not known either.
            frames = first.shape[2] if isinstance(first, Tensor) and first.ndim == 5 and output is given else 1
            found[name] = Passed(tuple(output.shape), read, frames)

    hooks = [
        child.register_forward_hook(lambda _m, inputs, output, name=name: watch(name, inputs, output))
        for name, child in tappable(module).items()
        if name
    ]
    mode = module.training
    try:
        with torch.no_grad():
            module.eval()
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
        module.train(mode)
    return found


def has_shape_of(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a map of one size (h, w) could show what another one shows, at another scale."""
    (h, w), (height, width) = size, other
    return abs(h * width - w * height) <= max(height, width)


def tappable(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> submodule, the module itself as ""; of a `Supernet`, those of its network, by students' names too."""
    if isinstance(module, Supernet):
        return module.named_parts()
    return dict((module.tapped if isinstance(module, Viewed) else module).named_modules())


def sketch(modules: Iterable[str], limit: int = 12) -> str:
    """Some of these names of modules, the outer ones, for people."""
    names = [name for name in modules if name and name.count(".") < 2]
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
