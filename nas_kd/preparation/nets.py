"""Nets that trials may have, built before training to check objectives, batches and steps against them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_kd.objectives import DistillationLoss, ObjectiveConfig
from nas_kd.search_spaces import Supernet
from nas_kd.search_spaces.arch import Choice
from nas_kd.taps import shapes_given
from nas_kd.training.settings import FitConfig
from nas_kd.trial import CampaignContext


@dataclass(frozen=True)
class TrialNets:
    """The nets that trials with these knobs of the space may have, with fresh weights, to see whether things fit.

    Attributes:
        supernet: for the search; it runs its widest architecture.
        students: the widest and the narrowest one: a module that both have is one that, in all likelihood, all have.
        example: zeros of what they see, with batch size 1.
    """

    supernet: Supernet
    students: tuple[nn.Module, ...]
    example: Tensor

    def shapes(self, net: nn.Module) -> dict[str, tuple[int, ...]]:
        """What can be tapped in one of them: module -> shape."""
        return shapes_given(net, self.example)


def build_nets(context: CampaignContext, knobs: Mapping[str, Choice]) -> TrialNets:
    """The nets for these knobs."""
    space = context.space
    supernet = Supernet(space, knobs)
    widest = space.widest(supernet.knobs)
    first = {name: values[0] for name, values in space.variables.items()}
    archs = dict.fromkeys([widest, space.arch({**supernet.knobs, **first})])
    supernet.control.pinned = {n: len(space.variables[n]) - 1 for n in widest.choices if n in space.variables}
    students = tuple(space.student(arch).to(context.device) for arch in archs)
    return TrialNets(supernet.to(context.device), students, context.student_example(supernet.knobs))


def build_objective(
    context: CampaignContext, config: ObjectiveConfig, nets: TrialNets, net: nn.Module
) -> DistillationLoss:
    """The objective of one of these nets, to see what it needs and whether it fits.

    Raises:
        ValueError: it does not fit the task, the space or the teacher.
    """
    teacher = context.teacher_model if config.distils else None
    varying, teacher_example = net is nets.supernet, context.teacher_example()
    return DistillationLoss(config, context.task, net, teacher, nets.example, teacher_example, varying_width=varying)


def num_batches(context: CampaignContext, config: FitConfig) -> int:
    """Batches that a training on both splits together sees, over all epochs."""
    return len(context.loader(context.splits.retrain, config, seed=0, train=True)) * config.epochs


def supports_batch_size_1(net: nn.Module, example: Tensor) -> bool:
    """Whether a net can be trained in batches of one item: no BatchNorm is left with one value a channel."""
    try:
        net = copy.deepcopy(net).train()  # whose statistics stay as they are
    except Exception:  # a net of the user's that cannot be copied is not judged
        return True
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            net(example)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                return False
            raise
    return True
