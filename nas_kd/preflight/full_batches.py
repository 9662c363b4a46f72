"""One step of each net at the batch sizes of the campaign: what too large a batch breaks is found before the training.

The rehearsal's own batches have two items. A net of the user's that takes no more than some number of clips, or memory
that does not suffice, would be found after hours otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_kd.data import Batch, ClipDataset, Sample
from nas_kd.preparation.nets import build_nets
from nas_kd.preparation.proposals import Proposal
from nas_kd.preparation.teacher import teacher_loss
from nas_kd.search_spaces.arch import Choice
from nas_kd.teachers import is_precomputed
from nas_kd.training.precision import autocast
from nas_kd.training.settings import FitConfig
from nas_kd.trial import CampaignContext


class FullBatch(NamedTuple):
    """A pass at the size that the campaign has.

    Attributes:
        what: the net and the key of the batch size, for a sentence.
        key: to be lowered where it fails.
        run: the pass, with the backward one where the campaign has one.
    """

    what: str
    key: str
    run: Callable[[], None]


def full_batches(context: CampaignContext, small: CampaignContext, proposal: Proposal) -> Iterator[FullBatch]:
    """The passes of a campaign at its batch sizes, on items that repeat.

    Args:
        context: of the campaign.
        small: of the rehearsal, with a few items and nets of its own.
        proposal: with the knobs of the largest students.
    """
    config, teacher, kind = proposal.config, small.teacher_model, context.input_type
    if not is_precomputed(teacher):
        number = min(context.eval_batch_size, max(len(context.splits.val), len(context.splits.test)))

        def evaluation() -> None:
            on_items = kind.on_items(teacher.eval(), number)
            with torch.no_grad():
                on_items(small.teacher_input(_batch(small, small.splits.val, number)))

        key = "evaluation.batch_size"
        yield FullBatch(f"teacher, {key} {number}", key, evaluation)
        if config.teacher.trains:
            number, key = min(config.teacher.fit.batch_size, len(context.splits.retrain)), "teacher.fit.batch_size"
            yield FullBatch(f"teacher, {key} {number}", key, partial(_teacher_step, small, number))
    knobs, nets = proposal.knobs[-1], build_nets(small, proposal.knobs[-1])
    trained: list[tuple[str, FitConfig, nn.Module, int]] = [
        ("retrain", config.retrain, nets.students[0], len(context.splits.retrain))
    ]
    if kind.always_searches or context.space.is_open(knobs):
        of_search = min(len(context.splits.weights), len(context.splits.gates))
        trained.insert(0, ("search", config.search, nets.supernet, of_search))
    for name, fit, net, num_items in trained:
        number, key = min(fit.batch_size, num_items), f"{name}.batch_size"
        who = "supernet" if name == "search" else "student"
        yield FullBatch(f"{who}, {key} {number}", key, partial(_student_step, small, net, fit, number, knobs))


class _Repeated:
    """A data set of so many items, which are those of another one in turn."""

    def __init__(self, dataset: ClipDataset, number: int) -> None:
        self._dataset, self._number = dataset, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int, /) -> Sample:
        return self._dataset[index % len(self._dataset)]


def _batch(small: CampaignContext, dataset: ClipDataset, number: int) -> Batch:
    """A batch of `number` items, which repeat those of the data set."""
    repeated = _Repeated(dataset, number)
    return next(iter(small.loader(repeated, FitConfig(batch_size=number), seed=0, train=True).epoch(0)))


def _teacher_step(small: CampaignContext, number: int) -> None:
    teacher = small.teacher_model.train()
    loss = teacher_loss(small, _batch(small, small.splits.retrain, number))["task"]
    loss.backward()  # type: ignore[no-untyped-call]
    teacher.zero_grad(set_to_none=True)


def _student_step(
    small: CampaignContext, net: nn.Module, fit: FitConfig, number: int, knobs: Mapping[str, Choice]
) -> None:
    batch = _batch(small, small.splits.retrain, number)
    view = small.input_type.training_view(batch, small.space, knobs)
    net.train()
    with autocast(fit.precision, small.device):
        output = net(*view.student)
    _sum_of(output).backward()  # type: ignore[no-untyped-call]
    net.zero_grad(set_to_none=True)


def _sum_of(output: Any) -> Tensor:
    """Of all that a net gives."""
    if isinstance(output, Tensor):
        return output.float().sum()
    values = output.values() if isinstance(output, dict) else output
    return torch.stack([_sum_of(value) for value in values]).sum()
