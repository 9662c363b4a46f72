"""The metrics of an exported student on labelled data, from any of its files, and how the files differ there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import ClipDataset, ClipLoader, DataInfo
from nas_kd.data.framing import Cut
from nas_kd.data.spelling import first_of, with_spellings
from nas_kd.deploy.bundle import BundleInfo, Measured
from nas_kd.deploy.predictor import Predictor
from nas_kd.deploy.record import FileMetrics
from nas_kd.deploy.reduced import ENDINGS
from nas_kd.tasks import Task
from nas_kd.tasks.item_scores import interval_over_items
from nas_kd.tasks.task import metrics_of
from nas_kd.training.evaluate import mean_of_views

NOTABLE_LOSS = 0.02  # 2 points of a metric in percent, 2 % of the value of another: more by rounding is told
TOLERANCE = 2e-3  # of a metric measured again, relative to its value (at least 1); one item's share where that is more


@dataclass(frozen=True)
class LabelledSet:
    """Items with labels.

    Attributes:
        name: such as the split, for messages.
        dataset: the items.
        groups: group of each item; None where they are independent.
        info: what is known of the data.
        make_task: a new instance of the task, which keeps its own metrics.
        cuts: views of each item whose outputs are averaged; empty where it is one.
    """

    name: str
    dataset: ClipDataset
    groups: Sequence[str] | None
    info: DataInfo
    make_task: Callable[[], Task]
    cuts: tuple[Cut, ...] = ()


def measure(
    predictors: Sequence[Predictor],
    labelled: LabelledSet,
    *,
    batch_size: int | None = None,
    progress: OnProgress = no_progress,
) -> list[FileMetrics]:
    """The metrics of a student in each form, all on the same batches.

    Args:
        predictors: the same student from several files; outputs are compared with those of the first one.
        labelled: the data.
        batch_size: items at once; as in a campaign by default.
        progress: called after each batch.

    Raises:
        ValueError: the data are not of the kind that the student was trained on, or have other classes.
    """
    info = predictors[0].info
    _check_fits(info, labelled)
    if labelled.groups is not None:
        # The interval over groups needs it: a missing package is told before the work and not after it.
        importlib.import_module("scipy.special")
    tasks = [labelled.make_task() for _ in predictors]
    key = info.input_type.key
    size = min(batch_size or min(info.input_type.eval_batch_size, 16), len(labelled.dataset))
    seen = None if labelled.cuts else labelled.info.seen
    loader = ClipLoader(labelled.dataset, size, keys=(key, *tasks[0].keys), seen=seen, cuts=labelled.cuts)
    offsets = None
    interval = predictors[0].backend.interval
    if interval is not None:
        offsets = [number % interval for number in range(labelled.info.frames)]
    apart, largest = [0.0] * len(predictors), 0.0
    with torch.random.fork_rng(devices=[]):  # a space may choose frames at random: the same ones as in its trial
        torch.manual_seed(0)
        for number, views in enumerate(loader.evaluation()):
            state = torch.get_rng_state()
            first: Tensor | None = None
            for i, (predictor, task) in enumerate(zip(predictors, tasks, strict=True)):
                torch.set_rng_state(state)
                outputs = mean_of_views([predictor.outputs(view[key]) for view in views])
                first = outputs if first is None else first
                largest = max(largest, float(outputs.abs().max()))
                apart[i] = max(apart[i], float((outputs - first).abs().max()))
                task.update(outputs, views[0], offsets)
            progress((number + 1) / len(loader), f"measuring on {labelled.name}")
    results = []
    for predictor, task, difference in zip(predictors, tasks, apart, strict=True):
        scores = task.item_scores()
        low, high = (interval_over_items([scores], labelled.groups) if scores is not None else None) or (None, None)
        groups = None if labelled.groups is None else len(set(labelled.groups))
        results.append(
            FileMetrics(
                backend=predictor.backend.name,
                files=predictor.backend.files,
                metric=task.metric,
                metrics=metrics_of(task),
                measured=Measured(
                    num_items=len(labelled.dataset),
                    num_groups=groups,
                    views=len(labelled.cuts) or 1,
                    low=low,
                    high=high,
                ),
                max_abs_difference=difference if len(predictors) > 1 else None,
                largest_output=largest,
            )
        )
    return results


def differs(found: float, expected: float, num_items: int) -> bool:
    """Whether a metric that was measured again is another one, and not the same but for rounding.

    An item whose best classes are nearly equal may change sides.
    """
    return not abs(found - expected) <= max(TOLERANCE * max(1.0, abs(expected)), 1.0 / num_items + 1e-6)


def losses(found: Sequence[FileMetrics], task: type[Task]) -> tuple[str, ...]:
    """A sentence for each file of less precision that is much worse than the weights, by `NOTABLE_LOSS`.

    Args:
        found: of each form of a student on the same items.
        task: says which way its metric is better, and whether it is a share of 1.
    """
    exact = next((form for form in found if form.backend not in ENDINGS), None)
    if exact is None:
        return ()
    is_share = any(fnmatchcase(exact.metric, pattern) for pattern in task.percent)
    sentences = []
    for form in found:
        lost = task.gain(exact.value) - task.gain(form.value)
        if form.backend not in ENDINGS or not lost > NOTABLE_LOSS * (1.0 if is_share else abs(exact.value)):
            continue
        much = f"{100 * lost:.1f} points" if is_share else f"{100 * lost / max(abs(exact.value), 1e-9):.1f} %"
        instead = "the float32 graph (--format onnx)"
        if form.backend != "onnx-fp16":
            instead += ", or the 16-bit one (--format onnx-fp16) if its metric holds"
        sentences.append(
            f"rounding costs {' and '.join(form.files)} {much} of {exact.metric} ({form.value:.4f}, the weights "
            f"{exact.value:.4f}, on {form.measured.num_items} items); deploy {instead}"
        )
    return tuple(sentences)


def _check_fits(info: BundleInfo, labelled: LabelledSet) -> None:
    task, data = labelled.make_task(), labelled.info
    if task.class_names != info.class_names:
        foreign = [name for name in task.class_names if name not in info.class_names]
        which = (
            f"it has no {first_of(with_spellings(foreign, info.class_names, 'it'))}"
            if foreign
            else "their order or number differs"
        )
        raise ValueError(
            f"the classes of the data must be those of the student, {', '.join(info.class_names[:10])}, in this order, "
            f"but {which}; list them as data.classes"
        )
    have, want = (data.frames, (data.height, data.width)), (info.source_frames, info.source_size)
    if have != want:
        raise ValueError(
            f"the data give items of {have[0]} frames of {have[1][0]} × {have[1][1]} pixels, but the student was "
            f"trained on {want[0]} frames of {want[1][0]} × {want[1][1]}; set frames and size of the data to these"
        )
