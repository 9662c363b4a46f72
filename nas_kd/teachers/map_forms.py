"""How the output of a module is read as a feature map, where it is none by itself.

Transformers give tokens (N, L, C), which lie on a grid of frames and pixels; nets that fold the frames into the batch
give (N · T, C, H, W). Which axis is which is found by measurement: small regions of a clip are changed, and of the axes
that fit the shape, those are right under which the output changes most in the same places. What no axes explain is no
map. The net is measured with weights that are drawn anew in the same way each time, so that what is found depends on
its structure and not on its own weights, which another seed would make others.

Tokens that are pooled by the maximum over an axis of the memory, as in Hiera (Ryali et al., ICML 2023), lie in another
order than that of rows: those of each window that will be pooled come first. The axes of such an order are parts of h
and w, from the finest to the coarsest: (h2, w2, h1, w1, h, w) before two poolings, where the row of a token is
(h · 2 + h1) · 2 + h2.

Shape legend: N clips, t, h and w frames and pixels of a map, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.taps import has_shape_of
from nas_kd.teachers.drawn_weights import drawn_weights

Grid = tuple[int, int, int]
Place = tuple[int, float, float]

MAX_SPECIAL = 8  # tokens beside those of the grid, before them: of the class, of registers
# Of the changed regions: the end of the clip (0 or 1), and the shares of its height and width where a region's centre
# lies. Unlike corners, they are where no symmetry of a grid leads from one to another.
_PLACES: tuple[Place, ...] = (
    (0, 1 / 8, 5 / 8), (1, 3 / 8, 1 / 8), (0, 5 / 8, 7 / 8), (1, 7 / 8, 3 / 8), (1, 1 / 8, 7 / 8), (0, 7 / 8, 1 / 8),
)  # fmt: skip
_ROWS = 1 + len(_PLACES)  # of the clips that are shown
_DRAWS = 4  # of the weights with which the net is measured
_FIRST_DRAW = 4  # with which the nets of docs/teachers.md are read as they are; any number would do for most
_REGION = 8  # parts of a side; a region is one of them
_CONFIRMED = 4  # places in which a form must fit
_NOT_CONTRADICTED = 3  # places in which a form must fit that other modules have
_NEAR = 0.3  # of the length of an axis
_POOLINGS = 3  # of windows of 2 x 2 tokens, whose order is tried
_ORDER = ("N", "C", "t", "h", "w")
_PLAIN = (_ORDER, ("N", "C", "h", "w"))  # axes of what is a map as it is


@dataclass(frozen=True)
class MapForm:
    """The axes of an output in the order of its memory.

    Attributes:
        axes: names among N, C, t, h, w, and h1, w1, … for finer parts of h and w. The module returns them merged:
            tokens, rows of a batch with frames.
        sizes: of t, h and w, and of their parts.
        special: tokens before those of the grid.
        dim: of the output that has the tokens.
        first: the module returns several values, of which the first is the output.
    """

    axes: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]
    special: int = 0
    dim: int = 1
    first: bool = False

    def convert(self, output: Any, items: int) -> Tensor:
        """The output of a module as (N, C, t, h, w), or (N, C, h, w) where it has no axis of frames.

        Args:
            output: of the module.
            items: N.
        """
        return self._ordered(self._unfolded(output, items))

    def changes(self, output: Any, items: int) -> Tensor:
        """By how much the map of each item but the first differs from that of the first one, (N - 1, t, h, w).

        Args:
            output: of the module.
            items: N.
        """
        value = self._unfolded(output, items)
        item, channel = self.axes.index("N"), self.axes.index("C")
        rest = value.narrow(item, 1, items - 1) - value.narrow(item, 0, 1)
        changes = self._ordered(rest.abs().sum(channel, keepdim=True))[:, 0]
        return changes if changes.ndim == 4 else changes.unsqueeze(1)

    def _unfolded(self, output: Any, items: int) -> Tensor:
        """The output with a dimension for each axis."""
        value: Tensor = first_tensor(output) if self.first else output
        if self.special:
            value = value.narrow(self.dim, self.special, value.shape[self.dim] - self.special)
        known = {**dict(self.sizes), "N": items}
        return value.reshape([known.get(axis, -1) for axis in self.axes])

    def _ordered(self, value: Tensor) -> Tensor:
        """A tensor with a dimension for each axis as a map."""
        parts = [[axis for axis in sorted(self.axes) if axis[0] == letter] for letter in _ORDER]
        value = value.permute([self.axes.index(axis) for part in parts for axis in part])
        if len(self.axes) > len(_ORDER):  # parts of h, and of w, become one axis each
            sizes = iter(value.shape)
            value = value.reshape([prod(next(sizes) for _ in part) for part in parts if part])
        return value


def first_tensor(output: Any) -> Any:
    """The first value of what a module returns, where it returns several."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, tuple | list):
        output = output[0] if output else None
    return output


def find_forms(
    net: nn.Module, run: Callable[[Tensor], Any], clip: Tensor, *, frames: int | None, size: tuple[int, ...]
) -> dict[str, MapForm]:
    """Module -> form, for those of a net whose outputs are maps in another form.

    Args:
        net: that runs.
        run: a pass of the net for clips; it raises `ValueError` where the net does not take them.
        clip: one input of the campaign, (1, 3, T, H, W) or (1, 3, H, W), of random pixels.
        frames: that the net sees; None where it sees single frames.
        size: (H, W) that it sees.
    """
    seen = _Observer(_ROWS, frames, (size[0], size[1]))
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.look(name, output))
        for name, module in net.named_modules()
        if name
    ]
    try:
        for draw in range(_DRAWS):
            shown = _changed(clip, brighter=draw % 2 == 0)
            try:
                with drawn_weights(net, _FIRST_DRAW + draw):
                    run(shown)
            except ValueError:  # some nets refuse weights that they do not expect
                run(shown)
            if not seen.measures:
                break
            seen.end_pass()
    finally:
        for hook in hooks:
            hook.remove()
    return seen.forms()


def _changed(clip: Tensor, *, brighter: bool) -> Tensor:
    """The clip, and a copy of it for each place: a region is as bright as its brightest pixel, or as its darkest.

    Other values would be out of its range, and some nets refuse them.
    """
    clips = clip.repeat(_ROWS, *(1,) * (clip.ndim - 1))
    value = clip.amax() if brighter else clip.amin()
    for row, place in enumerate(_PLACES, start=1):
        part = clips[row]
        for axis in range(1, part.ndim):
            length, where = part.shape[axis], place[axis + 3 - part.ndim]
            width = max(length // (4 if axis == 1 and part.ndim == 4 else _REGION), 1)
            start = min(max(round(where * length - width / 2), 0), length - width)
            part = part.narrow(axis, start, width)
        part.copy_(value)
    return clips


@dataclass(frozen=True)
class _Seen:
    """What the output of a module says.

    Attributes:
        shape: of the output.
        several: whether it is the first of several values.
        form: that measurement confirms; None where it confirms none, or several that differ.
        possible: forms that fit the shape, without `first` -> in how many places each fits the changes.
    """

    shape: tuple[int, ...]
    several: bool
    form: MapForm | None
    possible: Mapping[MapForm, int]


class _Observer:
    """Looks at the outputs of modules while a net runs, once or several times, and keeps only what they say."""

    def __init__(self, items: int, frames: int | None, size: tuple[int, int]) -> None:
        self.items, self.frames, self.size = items, frames, size
        self._grids: dict[Grid, None] = {}
        self._found: dict[str, _Seen] = {}
        # Module -> form without `first` -> changes of its map, (places, t, h, w): of this pass, and of all before it.
        self._changes: dict[str, dict[MapForm, Tensor]] = {}
        self._before: dict[str, dict[MapForm, Tensor]] = {}

    @property
    def measures(self) -> bool:
        """Whether there was a module whose form had to be measured."""
        return bool(self._changes)

    def end_pass(self) -> None:
        """The pass is over; another one adds to what it says."""
        for name, changes in self._changes.items():
            before = self._before.get(name, {})
            self._before[name] = before | {
                form: change + before[form] if form in before else change for form, change in changes.items()
            }
        self._changes = {}

    def look(self, name: str, output: Any) -> None:
        value = first_tensor(output)
        self._found.pop(name, None)
        self._changes.pop(name, None)  # a module that runs twice in a pass is what it is the last time
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (3, 4, 5):
            return
        several = value is not output
        options = list(self._options(value, several))
        if not several and self._is_map(value) and all(option.axes in _PLAIN for option in options):
            self._note_grid(value)
            return
        if not options:
            return
        # Of maps whose axes could be read in several ways, as with as many channels as pixels, all places must fit.
        spatial = value.ndim == 3 or (value.ndim == 5 and len(options) > 1)
        seen = self._measured(name, options, output, spatial=spatial)
        if seen.form is not None and value.ndim > 3:
            self._note_grid(seen.form.convert(output, self.items))
        self._found[name] = seen

    def _measured(self, name: str, options: Sequence[MapForm], output: Any, *, spatial: bool) -> _Seen:
        """What measurement says about the forms that fit a shape."""
        self._changes[name] = {
            replace(option, first=False): _shares(option.changes(output, self.items)) for option in options
        }
        before = self._before.get(name, {})
        changes = [_local(one + before.get(form, 0)) for form, one in self._changes[name].items()]
        # Of a convolution's output the pixels are known, but for the place of the channels: they decide second.
        scores = [(_score(one, spatial=spatial), _score(one, spatial=True)) for one in changes]
        best = max(scores)
        rivals = [option for option, score in zip(options, scores, strict=True) if score == best]
        first = rivals[0].convert(output, self.items)
        alike = all(_equal(rival.convert(output, self.items), first) for rival in rivals[1:])
        # What has rows of frames could also be a matrix of attention.
        is_odd = first_tensor(output).ndim == 4 and best[1] < _NOT_CONTRADICTED
        form = rivals[0] if alike and best[0] >= _CONFIRMED and not is_odd else None
        possible = {replace(option, first=False): first for option, (first, _) in zip(options, scores, strict=True)}
        return _Seen(tuple(first_tensor(output).shape), options[0].first, form, possible)

    def forms(self) -> dict[str, MapForm]:
        """Of all modules whose form is known, or is that of all other modules with outputs of the same shape.

        The latter only where it fits as well as any other and is not contradicted: some nets keep their tokens in
        another order within a stage.
        """
        by_shape: dict[tuple[int, ...], set[MapForm]] = {}
        for seen in self._found.values():
            if seen.form is not None:
                by_shape.setdefault(seen.shape, set()).add(replace(seen.form, first=False))
        found: dict[str, MapForm] = {}
        for name, seen in self._found.items():
            alike, form = by_shape.get(seen.shape, set()), seen.form
            if form is None and len(alike) == 1:
                (common,) = alike
                if seen.possible.get(common, 0) >= max(_NOT_CONTRADICTED, *seen.possible.values()):
                    form = replace(common, first=seen.several)
            if form is not None and (seen.several or form.axes not in _PLAIN):
                found[name] = form
        return found

    def _is_map(self, value: Tensor) -> bool:
        """Whether a tensor is (N, C, T, H, W), or of a net of frames (N, C, H, W), as it is."""
        wanted = 4 if self.frames is None else 5
        return value.ndim == wanted and len(value) == self.items and self._scaled(value.shape[-2:])

    def _scaled(self, size: Sequence[int]) -> bool:
        """Whether a size could be that of the input, at a lower scale."""
        return size[0] <= self.size[0] and size[1] <= self.size[1] and has_shape_of(size, self.size)

    def _note_grid(self, value: Tensor) -> None:
        t = value.shape[2] if value.ndim == 5 else 1
        h, w = value.shape[-2], value.shape[-1]
        while h * w > 1:
            self._grids.setdefault((t, h, w))
            h, w = -(-h // 2), -(-w // 2)

    def _options(self, value: Tensor, several: bool) -> Iterator[MapForm]:
        if value.ndim > 3 and (1, 1) in (tuple(value.shape[-2:]), tuple(value.shape[-3:-1])):
            return  # pooled to a point; few classes and frames could be read as the height and width of one channel
        if value.ndim == 3:
            for grid in self._grids or self._patches():
                yield from self._tokens(value, grid, several)
        elif value.ndim == 4:
            yield from self._folded(value, several)
        elif len(value) == self.items:
            readings = {"NthwC": (1, 2, 3), "NCthw": (2, 3, 4), "NtChw": (1, 3, 4)}
            for axes, places in readings.items():
                t, h, w = (value.shape[place] for place in places)
                if t <= (self.frames or 1) and self._scaled((h, w)) and h * w > 1:
                    yield _form(list(axes), (t, h, w), several)

    def _patches(self) -> dict[Grid, None]:
        """Grids of patches that divide the input, for nets that cut them without a convolution."""
        found: dict[Grid, None] = {}
        frames, (height, width) = self.frames or 1, self.size
        for patch in range(2, min(height, width)):
            if height % patch or width % patch:
                continue
            for tube in (step for step in range(1, frames + 1) if frames % step == 0):
                found.setdefault((frames // tube, height // patch, width // patch))
        return found

    def _tokens(self, value: Tensor, grid: Grid, several: bool) -> Iterator[MapForm]:
        t, h, w = grid
        for dim in (1, 0):
            rows, length = value.shape[1 - dim], value.shape[dim]
            outer = {self.items: ("N",), self.items * t: ("Nt", "tN"), self.items * h * w: ("Nhw", "hwN")}
            for parts in outer.get(rows, ()):
                rest = [axis for axis in "thw" if axis not in parts]
                number = prod(dict(zip("thw", grid, strict=True))[axis] for axis in rest)
                if not 0 <= length - number <= MAX_SPECIAL:
                    continue
                for order in _orders(rest, grid):
                    axes = [*parts, *order] if dim == 1 else [*order, *parts]
                    yield _form(axes, grid, several, length - number, dim, frames=self.frames)

    def _folded(self, value: Tensor, several: bool) -> Iterator[MapForm]:
        rows = len(value)
        for first in (False, True):  # channels first, channels last
            h, w = value.shape[1:3] if first else value.shape[2:]
            if h * w <= 1 or not self._scaled((h, w)):
                continue
            if self.frames is None:
                if rows == self.items:
                    yield _form(list("Nhw" if first else "NChw"), (1, h, w), several, frames=None)
            elif rows % self.items == 0 and rows // self.items <= self.frames:
                t = rows // self.items
                if t == 1 and self.frames > 1:  # one map of the whole clip
                    continue
                for parts in ("Nt", "tN") if t > 1 else ("Nt",):
                    yield _form([*parts, *("hw" if first else "Chw")], (t, h, w), several)


def _orders(axes: Sequence[str], grid: Grid) -> Iterator[list[str]]:
    """Orders in which the tokens of a grid may lie.

    Args:
        axes: that the tokens have, among t, h and w.
        grid: its sizes.
    """
    yield list(axes)
    if "h" not in axes:
        return
    if "t" in axes:
        yield ["h", "w", "t"]
    finer: list[str] = []
    for pooling in range(1, _POOLINGS + 1):
        if grid[1] % 2**pooling or grid[2] % 2**pooling:
            return
        finer = [f"h{pooling}", f"w{pooling}", *finer]
        yield [*finer, *axes]


def _form(
    axes: list[str], grid: Grid, first: bool, special: int = 0, dim: int = 1, *, frames: int | None = -1
) -> MapForm:
    """A form from its axes; C is the last one where it is not among them, and t is left out for single frames."""
    if "C" not in axes:
        axes = [*axes, "C"]
    sizes = dict(zip("thw", grid, strict=True))
    for axis in axes:
        if len(axis) > 1:
            sizes[axis] = 2
            sizes[axis[0]] //= 2
    if frames is None:
        axes = [axis for axis in axes if axis != "t"]
        del sizes["t"]
    elif "t" not in axes:
        axes = [*axes[: axes.index("N") + 1], "t", *axes[axes.index("N") + 1 :]]
    return MapForm(tuple(axes), tuple(sizes.items()), special, dim, first)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _shares(changes: Tensor) -> Tensor:
    """Changes of maps (places, t, h, w) as shares of the change of the whole map; 0 where they are not finite."""
    return (changes / changes.sum((1, 2, 3), keepdim=True)).nan_to_num(0.0)


def _local(changes: Tensor) -> Tensor:
    """Changes of maps (places, t, h, w) beside the usual one: what changes wherever the region lies tells no place.

    The usual change is that over the places and that over the map, so that rounding does not decide where nothing is.
    """
    return changes / (changes.mean(0, keepdim=True) + changes.mean()).clamp(min=1e-30)


def _score(changes: Tensor, *, spatial: bool) -> int:
    """In how many of the places a map changes most where its clip was changed.

    Args:
        changes: of a map, for each of the places, (N, t, h, w).
        spatial: whether pixels count; of a convolution's output they are known, and only frames may be mixed up.
    """
    fits: dict[int, list[bool]] = {0: [], 1: []}  # by the end of the clip
    cells: dict[int, set[tuple[int, int]]] = {0: set(), 1: set()}
    for (end, row, column), values in zip(_PLACES, changes, strict=True):
        if float(values.max()) == 0:
            continue
        t = int(values.sum((1, 2)).argmax())
        h, w = divmod(int(values.sum(0).argmax()), values.shape[2])
        near = _is_near(h, values.shape[1], row) and _is_near(w, values.shape[2], column)
        fits[end].append(_is_in_half(t, values.shape[0], end) and (near or not spatial))
        cells[end].add((h, w))
    # What changes at one cell wherever the region lies has no places: tokens of whole frames, say.
    return sum(sum(fits[end]) for end in fits if len(cells[end]) > 1 or not spatial)


def _is_in_half(index: int, size: int, end: int) -> bool:
    """Whether an index lies in the half of an axis at its start (0) or at its end (1)."""
    return (size - 1 - index if end else index) <= (size - 1) / 2


def _is_near(index: int, size: int, share: float) -> bool:
    """Whether an index lies where this share of an axis is; of short axes, neighbours count."""
    return abs(index + 0.5 - share * size) <= max(_NEAR * size, 0.75)
