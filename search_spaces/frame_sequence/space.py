"""Space `frame_sequence`: students that see few frames of a sequence (Bhardwaj et al., CVPR 2019, arXiv 1902.10640).

    features (N, T, D) → the selector's k frames → encoder → (N, E) → head → logits (N, num_classes)

The family of the encoder, k and the selector are knobs. Gates decide the sizes of the encoder and the kind of head.
The encoding is the output of the module `encoder`, in the supernet as in students, for an objective to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.frame_selectors import select_frames
from nas_kd.search_spaces.frame_sequence.net import FrameSequenceNet
from nas_kd.search_spaces.frame_sequence.settings import FrameSequenceSettings
from nas_kd.search_spaces.module_space import ModuleSpace


class FrameSequenceSpace(ModuleSpace):
    """The space described at the top of this module."""

    def __init__(self, settings: FrameSequenceSettings) -> None:
        def example(knobs: Mapping[str, Choice]) -> Tensor:
            return torch.zeros(1, int(knobs["frames"]), settings.feature_size)

        super().__init__(
            partial(FrameSequenceNet, settings=settings),
            example,
            "frame_sequence",
            knobs={"family": settings.family, "frames": settings.frames, "selector": settings.selector},
            settings=settings.model_dump(mode="json"),
        )

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
