"""Space `frame_sequence`: students that see few frames of a sequence (Bhardwaj et al., CVPR 2019, arXiv 1902.10640).

    features (N, T, D) → the selector's k frames → encoder → (N, E) → head → logits (N, num_classes)

The family of the encoder, k and the selector are knobs. Gates decide the sizes of the encoder and the kind of head.
The encoding is the output of the module `encoder`, in the supernet as in students, for an objective to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.cost import CostTable
from search_spaces.frame_selectors import select_frames
from search_spaces.frame_sequence.cost import frame_sequence_costs
from search_spaces.frame_sequence.net import FrameSequenceNet, build_net
from search_spaces.frame_sequence.settings import FrameSequenceSettings
from search_spaces.frame_sequence.supernet import FrameSequenceSupernet
from search_spaces.gates import GateFactory
from search_spaces.space import SearchSpace


class FrameSequenceSpace(SearchSpace):
    """The space described at the top of this module."""

    name = "frame_sequence"

    def __init__(self, settings: FrameSequenceSettings) -> None:
        self._s = settings
        self.settings = settings.model_dump(mode="json")
        self.knobs = {"family": settings.family, "frames": settings.frames, "selector": settings.selector}
        variables: dict[str, tuple[Choice, ...]] = {}
        for family in settings.family:
            variables |= {f"{family}.{name}": options for name, options in settings.options(family).items()}
        self.variables = {**variables, "head": settings.head}
        self._tables: dict[tuple[str, int], CostTable] = {}

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        return FrameSequenceSupernet(self._s, str(knobs["family"]), make_gate)

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        return build_net(self._s, choices)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        """The head, and the variables of the family that is chosen."""
        family = str(choices["family"])
        return {"head"} | {name for name in self.variables if name.startswith(f"{family}.")}

    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        cast(FrameSequenceSupernet, network).hand_over(cast(FrameSequenceNet, student), choices)

    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        key = str(knobs["family"]), int(knobs["frames"])
        if key not in self._tables:
            self._tables[key] = frame_sequence_costs(self._s, self.variables, *key)
        return self._tables[key]

    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        return torch.zeros(1, int(knobs["frames"]), self._s.feature_size)

    def fit_input(self, clip: Tensor, knobs: Mapping[str, Choice]) -> Tensor:
        """The frames that the student sees.

        Args:
            clip: (N, T, D) frame features, T at least the frames wanted.

        Returns:
            (N, frames, D).

        Raises:
            ValueError: the sequence has fewer frames than the student wants.
        """
        return select_frames(clip, int(knobs["frames"]), str(knobs["selector"]))

    def size(self) -> int:
        """Number of canonical architectures."""
        families = sum(prod(map(len, self._s.options(family).values())) for family in self._s.family)
        return families * len(self._s.head) * len(self._s.frames) * len(self._s.selector)
