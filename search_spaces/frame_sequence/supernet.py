"""The supernet of the space `frame_sequence`: each part once, at its largest, under gates for its sizes.

A mixture of several sizes is read at the largest of them, the missing channels of the smaller ones being zero
(`mix_widths`); where single sizes are drawn, it computes exactly what the student of those sizes does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.cells import Edge, Sliced, mix_widths
from search_spaces.frame_sequence.net import FrameSequenceNet
from search_spaces.frame_sequence.parts import (
    FrameNorm,
    GroupedVladPool,
    Lstm,
    VladPool,
    classifier,
    gated_layer,
    squeezed_layer,
)
from search_spaces.frame_sequence.settings import FrameSequenceSettings
from search_spaces.gates import Gate, GateFactory, named_gate

State = dict[str, Tensor]


class FamilyGates(nn.ModuleDict):
    """The gates of one family, named as its variables."""

    def __init__(self, settings: FrameSequenceSettings, family: str, make: GateFactory) -> None:
        super().__init__()
        for name, options in settings.options(family).items():
            self[name] = named_gate(make, options, f"{family}.{name}")

    def of(self, name: str) -> Gate:
        """The gate of that name, without the family's prefix."""
        return cast(Gate, self[name])


class SearchEncoder(nn.Module):
    """An encoder of all sizes at once."""

    gates: FamilyGates

    def student_state(self, sizes: Mapping[str, int]) -> State:
        """State dict of the plain encoder of these sizes."""
        raise NotImplementedError


def _prefixed(**parts: Mapping[str, Tensor]) -> State:
    return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


class SearchHRnn(SearchEncoder):
    """`HRnnEncoder` under gates."""

    def __init__(self, settings: FrameSequenceSettings, make: GateFactory) -> None:
        super().__init__()
        self.gates = FamilyGates(settings, "h_rnn", make)
        options = settings.options("h_rnn")
        self.lower = Lstm(settings.feature_size, options["lower"][-1])
        self.upper = Lstm(options["lower"][-1], options["upper"][-1])

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> (N, widest drawn)."""
        lower, upper, length = (self.gates.of(name) for name in ("lower", "upper", "block_length"))
        sizes = [int(lower.choices[i]) for i in lower.draw().indices]
        projected = {size: self.lower.project(features, size) for size in sizes}

        def at_length(index: int) -> Tensor:
            frames = int(length.choices[index])

            def states(size: int) -> Tensor:  # channels second, where mix_widths pads them
                return self.lower.run(projected[size], frames).transpose(1, 2)

            blocks = mix_widths(lower, states).transpose(1, 2)
            return mix_widths(upper, lambda size: self.upper(blocks, size).squeeze(1))

        return length.draw().combine(at_length)

    def student_state(self, sizes: Mapping[str, int]) -> State:
        lower = self.lower.narrowed(self.lower.weight_in.shape[2], sizes["lower"])
        return _prefixed(lower=lower, upper=self.upper.narrowed(sizes["lower"], sizes["upper"]))


class SearchNetVlad(SearchEncoder):
    """`NetVladEncoder` under gates."""

    def __init__(self, settings: FrameSequenceSettings, make: GateFactory) -> None:
        super().__init__()
        self.gates = FamilyGates(settings, "net_vlad", make)
        options = settings.options("net_vlad")
        self.features = settings.feature_size
        self.norm = FrameNorm(self.features)
        self.pool = Sliced(VladPool, self.features, options["clusters"][-1])
        self.layer = Sliced(gated_layer, options["clusters"][-1] * self.features, options["hidden"][-1])

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> (N, widest drawn)."""
        clusters, hidden = self.gates.of("clusters"), self.gates.of("hidden")
        frames = self.norm(features).transpose(1, 2)
        pooled = mix_widths(clusters, lambda number: self.pool(frames, number))
        return mix_widths(hidden, lambda size: self.layer(pooled, size))

    def student_state(self, sizes: Mapping[str, int]) -> State:
        return _prefixed(
            norm=self.norm.state_dict(),
            pool=self.pool.narrowed(self.features, sizes["clusters"]),
            layer=self.layer.narrowed(sizes["clusters"] * self.features, sizes["hidden"]),
        )


class SearchNextVladPart(nn.Module):
    """`NextVladEncoder` of one expansion and one number of groups."""

    def __init__(self, settings: FrameSequenceSettings, expansion: int, groups: int) -> None:
        super().__init__()
        options = settings.options("nextvlad")
        clusters, hidden = options["clusters"][-1], options["hidden"][-1]
        self.expanded, self.part = expansion * settings.feature_size, expansion * settings.feature_size // groups
        self.expand = nn.Linear(settings.feature_size, self.expanded)
        self.pool = Sliced(partial(GroupedVladPool, groups=groups), self.expanded, clusters)
        build = partial(squeezed_layer, **settings.of("nextvlad").fixed())
        self.layer = Sliced(build, clusters * self.part, hidden)

    def forward(self, features: Tensor, clusters: Gate, hidden: Gate) -> Tensor:
        """(N, T, D) -> (N, widest drawn)."""
        frames = self.expand(features).transpose(1, 2)
        pooled = mix_widths(clusters, lambda number: self.pool(frames, number))
        return mix_widths(hidden, lambda size: self.layer(pooled, size))

    def student_state(self, clusters: int, hidden: int) -> State:
        """State dict of the plain encoder of these sizes."""
        return _prefixed(
            expand=self.expand.state_dict(),
            pool=self.pool.narrowed(self.expanded, clusters),
            layer=self.layer.narrowed(clusters * self.part, hidden),
        )


class SearchNextVlad(SearchEncoder):
    """`NextVladEncoder` under gates.

    Expansion and groups decide what the entries of a descriptor mean, so each pair of them has weights of its own.
    """

    def __init__(self, settings: FrameSequenceSettings, make: GateFactory) -> None:
        super().__init__()
        self.gates = FamilyGates(settings, "nextvlad", make)
        options = settings.options("nextvlad")
        self.parts = nn.ModuleDict(
            {
                f"{expansion}x{groups}": SearchNextVladPart(settings, expansion, groups)
                for expansion in options["expansion"]
                for groups in options["groups"]
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> (N, widest drawn)."""
        expansion, groups = self.gates.of("expansion"), self.gates.of("groups")
        clusters, hidden = self.gates.of("clusters"), self.gates.of("hidden")

        def part(e: int, g: int) -> Tensor:
            module = self.parts[f"{expansion.choices[e]}x{groups.choices[g]}"]
            return cast(Tensor, module(features, clusters, hidden))

        return expansion.draw().combine(lambda e: groups.draw().combine(lambda g: part(e, g)))

    def student_state(self, sizes: Mapping[str, int]) -> State:
        part = cast(SearchNextVladPart, self.parts[f"{sizes['expansion']}x{sizes['groups']}"])
        return part.student_state(sizes["clusters"], sizes["hidden"])


class SearchHead(nn.Module):
    """The classifiers under a gate; a narrower encoding uses their leading columns."""

    def __init__(self, settings: FrameSequenceSettings, width: int, make: GateFactory) -> None:
        super().__init__()
        self.num_classes = settings.num_classes
        build = {name: partial(classifier, head=name, experts=settings.experts) for name in settings.head}
        self.edge = Edge({name: Sliced(make_it, width, self.num_classes) for name, make_it in build.items()}, make)
        self.edge.gate.name = "head"

    def forward(self, encoding: Tensor) -> Tensor:
        """(N, C) -> logits (N, num_classes)."""
        return cast(Tensor, self.edge(encoding, self.num_classes))

    def student_state(self, width: int, head: str) -> State:
        """State dict of the plain classifier."""
        return cast(Sliced, self.edge.candidates[head]).narrowed(width, self.num_classes)


SEARCH_ENCODERS = {"h_rnn": SearchHRnn, "net_vlad": SearchNetVlad, "nextvlad": SearchNextVlad}


class FrameSequenceSupernet(FrameSequenceNet):
    """All students of one family at once. The gates of the other families are there, but reach nothing."""

    encoder: SearchEncoder
    head: SearchHead

    def __init__(self, settings: FrameSequenceSettings, family: str, make: GateFactory) -> None:
        encoder, encoding = SEARCH_ENCODERS[family](settings, make), settings.of(family).encoding
        super().__init__(encoder, SearchHead(settings, settings.options(family)[encoding][-1], make))
        self.encoding = encoding
        self.idle = nn.ModuleDict({f: FamilyGates(settings, f, make) for f in settings.family if f != family})

    def hand_over(self, student: FrameSequenceNet, choices: Mapping[str, Choice]) -> None:
        """Copy the weights that `student`, of these choices, uses."""
        gates = self.encoder.gates
        sizes = {name: int(choices[gates.of(name).name]) for name in gates}
        student.encoder.load_state_dict(self.encoder.student_state(sizes))
        student.head.load_state_dict(self.head.student_state(sizes[self.encoding], str(choices["head"])))
