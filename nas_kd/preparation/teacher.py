"""Work of a campaign before its trials: train or load the teacher, cache its outputs, measure latencies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas_kd.callbacks import Note, OnProgress, no_note, no_progress
from nas_kd.data import Batch
from nas_kd.files import DamagedFileError, read_json, write_text_atomically
from nas_kd.inputs import InputType
from nas_kd.preparation.identity import (
    answers,
    check_identity,
    check_sections,
    describe_unread,
    identity,
    same_answers,
)
from nas_kd.preparation.normalization_check import better_normalization
from nas_kd.preparation.offset_metrics import ByInterval, OffsetMetrics, merge, missing_intervals
from nas_kd.preparation.output_checks import OutputChecks, changed_classes
from nas_kd.preparation.teacher_outputs import prepare_caches
from nas_kd.search_spaces import CostTable, count_flops, count_params, layer_flops
from nas_kd.tasks import Task
from nas_kd.tasks.item_scores import ItemScores
from nas_kd.tasks.task import loss_of
from nas_kd.teachers import TEACHERS, bare, is_precomputed
from nas_kd.teachers.adapter import AdaptedTeacher
from nas_kd.teachers.cache import open_caches
from nas_kd.teachers.outputs import describe
from nas_kd.teachers.weights import save_weights
from nas_kd.training.fit import fit
from nas_kd.training.measure import environment, part_flops, using_threads
from nas_kd.training.precision import autocast
from nas_kd.trial.context import CampaignContext, all_knobs, latency_file, latency_name, load_kept_teacher
from nas_kd.trials import Split

BATCH_TOLERANCE = 0.02  # of the largest answer: nets of 8 bits of precision round differently in batches of other sizes


def prepare_teacher(
    context: CampaignContext,
    run_dir: Path,
    progress: OnProgress = no_progress,
    note: Note = no_note,
) -> dict[str, Any]:
    """Train or load the teacher, measure it, and keep it and its outputs in the run's folder. Done once a campaign.

    Args:
        context: data and an untrained teacher.
        run_dir: the run's folder.
        progress: called with the share that is done and a text.
        note: called with a sentence on cached outputs that are computed again or cannot be kept.

    Returns:
        As in `teacher.json`: its metrics by split and what they rest on (`evaluated`, by split the fields of
        `trials.Evaluated`), parameters, `flops` where they are known with the operators that they miss
        (`flops_uncounted`), `layers`, the fields of `LayerFlops` of each, `classes` by the number of its output,
        `identity` of data and weights, `warnings`, sentences on what is odd about its answers, and for students with
        key frames `by_interval`, the metrics on the frames at each offset from a key frame.

    Raises:
        ValueError: the folder was begun with another teacher, other data or other classes, or the model does not
            classify the data's classes.
    """
    folder = run_dir / "teacher"
    config, model = context.config, context.teacher_model
    manifest = folder / "teacher.json"
    check_teacher(context)
    classes = list(context.task.class_names)
    known = _known(folder, note)
    if known is not None:
        check_sections(run_dir, known.get("sections", {}), config.teacher_content)
        if known.get("classes") != classes:
            raise ValueError(changed_classes(run_dir, known.get("classes", []), classes))
        before = known.get("identity", {})
        check_identity(run_dir, before, identity(context, before))
        _load_kept(context, folder, note)
        if not same_answers(known.get("answers"), answers(context)):
            note(
                "the teacher gives other answers to a fixed input than when the run began: its code changed; its "
                "metrics are measured again, and trials that ended before learned from another teacher"
            )
            known.pop("by_interval", None)
            known |= _measured(context)
            write_text_atomically(manifest, json.dumps(known, indent=2) + "\n")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        if manifest.is_file():  # damaged
            _load_kept(context, folder, note)
        found = identity(context)
        for text in describe_unread(found):
            note(text)
        if config.teacher.trains and not is_precomputed(model) and not manifest.is_file():
            _train(context, folder / "checkpoint.pt", json.dumps([config.teacher_digest, found]), progress)
        model.eval()
        known = {"sections": config.teacher_content, "classes": classes, "identity": found}
        known |= {"params": count_params(model), **_measured(context)}
        save_weights(bare(model), folder / "teacher.safetensors")
        write_text_atomically(manifest, json.dumps(known, indent=2) + "\n")
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    context.freeze_teacher()
    if intervals := missing_intervals(context, known.get("by_interval", {})):
        known["by_interval"] = merge(known.get("by_interval", {}), _by_interval(context, intervals, progress))
        write_text_atomically(manifest, json.dumps(known, indent=2) + "\n")
    prepare_caches(context, folder / "outputs", known["identity"]["train"]["content"], progress, note)
    context.caches = open_caches(folder / "outputs")
    return known


def _known(folder: Path, note: Note) -> dict[str, Any] | None:
    """What is known of the teacher of a run; None before it is ready, and where its file is damaged."""
    manifest = folder / "teacher.json"
    try:
        return read_json(manifest, "the teacher is measured again with its weights; see that the data are the same")
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        note(str(error))
        return None


def _load_kept(context: CampaignContext, folder: Path, note: Note) -> None:
    """Give the teacher the weights that the run keeps; those of a file that the user gave are kept once more.

    Raises:
        DamagedFileError: they cannot be read.
    """
    model = context.teacher_model
    try:
        load_kept_teacher(model, folder.parent)
    except DamagedFileError:
        if context.config.teacher.trains and not is_precomputed(model):
            raise
        note("the run's weights of the teacher are missing or damaged; they were written again from the given ones")
        save_weights(bare(model), folder / "teacher.safetensors")


def _by_interval(context: CampaignContext, intervals: Sequence[int], progress: OnProgress) -> ByInterval:
    """Metrics of the teacher per offset from a key frame, on both splits."""
    found: ByInterval = {}
    for done, split in enumerate(("val", "test")):
        progress(done / 2, "teacher, metrics per offset from a key frame")
        metrics = OffsetMetrics(context, intervals)
        context.evaluate_teacher(getattr(context.splits, split), metrics.add)
        found = merge(found, metrics.compute(split))
    return found


def _train(context: CampaignContext, checkpoint: Path, tag: str, progress: OnProgress) -> None:
    """Train the teacher, or go on from its checkpoint, if it has the tag."""
    config, model, metric = context.config, context.teacher_model, context.task.metric
    fit(
        model,
        context.loader(context.splits.retrain, config.teacher.fit, seed=config.seed, train=True),
        lambda batch: teacher_loss(context, batch),
        lambda terms: terms["task"],
        config.teacher.fit,
        seed=config.seed,
        validate=lambda: context.task.gain(context.evaluate_teacher(context.splits.val)[metric]),
        checkpoint=checkpoint,
        tag=tag,
        progress=lambda share, words: progress(share, f"teacher, {words}"),
    )


def _measured(context: CampaignContext) -> dict[str, Any]:
    """What is measured of a teacher that has its weights: FLOPs, answers to a fixed input, metrics, warnings."""
    config, model = context.config, context.teacher_model
    known: dict[str, Any] = {"answers": answers(context)}
    if not is_precomputed(model):
        example = context.teacher_example()
        known["flops"], uncounted = context.input_type.teacher_flops(model, example, context.space)
        known["flops_uncounted"] = list(uncounted)
        if not uncounted:
            net, shown = context.input_type.counted_teacher(model, example, context.space)
            count = count_flops(net, (shown,), strict=False)
            known["layers"] = [asdict(layer) for layer in layer_flops(net, count)]
    known |= part_flops(bare(model), context.teacher_example())
    checks = OutputChecks(context.task)
    evaluated: dict[str, Any] = {}
    known["evaluated"] = evaluated
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        seen = checks.add if split == "val" else None
        scores: list[ItemScores] = []
        values = context.evaluate_teacher(getattr(context.splits, split), seen, scores.append)
        known |= {f"{split}/{name}": value for name, value in values.items()}
        evaluated[split] = context.evaluated(split, scores).model_dump()
    known["warnings"] = checks.doubts(
        trained_here=config.teacher.trains,
        evaluated=evaluated["val"],
        value=known[f"val/{context.task.metric}"],
        picked=model.outputs.picked if isinstance(model, AdaptedTeacher) else None,
    )
    if not config.teacher.trains and (sentence := better_normalization(context)):
        known["warnings"].append(sentence)
    return {name: value for name, value in known.items() if value not in ([], None)}


def describe_flops(known: Mapping[str, Any], unit: str) -> str:
    """What a teacher costs, in words; empty where that is not known.

    Args:
        known: of `teacher.json`.
        unit: of which the cost is.
    """
    if "flops" not in known:
        return ""
    uncounted = known.get("flops_uncounted")
    if not uncounted:
        return f" at {int(known['flops']):,} FLOPs a {unit}"
    return f", at least {int(known['flops']):,} FLOPs a {unit} (uncounted: {', '.join(uncounted)})"


def teacher_loss(context: CampaignContext, batch: Batch) -> dict[str, Tensor]:
    """The sum over all outputs of the teacher that are trained on the labels."""
    with autocast(context.config.teacher.fit.precision, context.device):
        outputs, labels = context.input_type.teacher_training_view(context.teacher_model, batch)
    return {"task": torch.stack([loss_of(context.task, output.float(), labels) for output in outputs]).sum()}


def check_outputs(
    task: Task, input_type: InputType, who: str, outputs: object, example: Tensor, way_out: str = ""
) -> None:
    """Raise where a net does not give what the task reads.

    Args:
        task: what it reads.
        input_type: of the campaign.
        who: the net, for the sentence.
        outputs: what it gave for the example.
        example: its input.
        way_out: of the mistake, for the sentence.

    Raises:
        ValueError: the shape wanted and the one given.
    """
    maps = input_type.outputs_are_maps(type(task))
    wanted = f"(1, {task.num_outputs}{', h, w' if maps else ''})"
    dense = isinstance(outputs, Tensor) and outputs.layout == torch.strided  # not sparse
    number = isinstance(outputs, Tensor) and dense and outputs.is_floating_point()
    fits = isinstance(outputs, Tensor) and number and outputs.ndim == (4 if maps else 2)
    if not fits or cast(Tensor, outputs).shape[:2] != (1, task.num_outputs):
        kind = f" of {outputs.dtype if dense else outputs.layout}" if isinstance(outputs, Tensor) and not number else ""
        raise ValueError(
            f"{who} must give {'maps' if maps else 'logits'} of shape {wanted} for "
            f"{input_type.item} of shape {tuple(example.shape)[1:]}, but gives {describe(outputs)}{kind}"
            f"{'; ' if way_out else ''}{way_out}"
        )


@torch.no_grad()
def _answer_or_none(model: nn.Module, inputs: Tensor) -> object:
    """None where the model refuses such inputs."""
    try:
        return cast(object, model(inputs))
    except Exception:  # whatever a net raises for inputs that it does not take
        return None


@torch.no_grad()
def _depends_on_the_batch(model: nn.Module, one: Tensor, other: Tensor) -> bool:
    """Whether a model answers something else for two inputs together than for each alone."""
    with torch.random.fork_rng(devices=[]):
        first, second = model(one).float(), model(other).float()
        pairs = [
            (torch.cat([one, other]), torch.cat([first, second])),
            (torch.cat([other, one]), torch.cat([second, first])),
        ]
        limit = BATCH_TOLERANCE * max(float(first.abs().max()), float(second.abs().max()))
        return any(bool(((model(both).float() - alone).abs() > limit).any()) for both, alone in pairs)


def check_teacher(context: CampaignContext) -> None:
    """Raise `ValueError` where the teacher does not read what the data are or give what the task reads."""
    model, example, name = context.teacher_model, context.teacher_example(), context.config.teacher.model
    trains = context.config.teacher.trains and not is_precomputed(model)
    mode = model.training
    try:
        with torch.set_grad_enabled(trains):
            outputs = model.eval()(example)
    except Exception as error:
        if name in TEACHERS and isinstance(error, ValueError):  # it says what is wrong
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"teacher.model: {name} cannot read {context.input_type.item} of the data, of shape "
            f"{tuple(example.shape)[1:]}; change its settings or the data's, or choose another teacher (it "
            f"stopped with {type(error).__name__}: {reason})"
        ) from error
    one_color = example.flatten(2)[..., :1] if example.ndim > 3 else example.flatten(1)[:, :1]
    flat = one_color.reshape(*one_color.shape, *(1,) * (example.ndim - one_color.ndim)).expand_as(example)
    of_flat = _answer_or_none(model, flat)
    model.train(mode)
    way_out = (
        "pick them with teacher.output and teacher.outputs, change teacher.settings, or let the function return a "
        "module around the net that gives them"
    )
    check_outputs(context.task, context.input_type, f"teacher.model: {name}", outputs, example, way_out)
    for what, values in {"random values": outputs, "values that are all alike": of_flat}.items():
        if isinstance(values, Tensor) and not bool(values.isfinite().all()):
            raise ValueError(
                f"teacher.model: {name} gives values that are not finite (NaN or infinity) for "
                f"{context.input_type.item} of {what}; see whether it divides by zero, or give other weights"
            )
    if outputs.is_inference():
        raise ValueError(
            f"teacher.model: {name} runs under torch.inference_mode, and nothing can learn from tensors that are made "
            "there; use torch.no_grad in its forward, or neither"
        )
    if trains and not outputs.requires_grad:
        raise ValueError(
            f"teacher.train: {name} has answers without a gradient, since its parameters are frozen or its forward "
            "runs under torch.no_grad, so it cannot be trained; set teacher.train: false to take it as it is"
        )
    if is_precomputed(model):
        return
    with torch.random.fork_rng(devices=[]):
        first, second = answers(context), answers(context)
    if not same_answers(first, second):
        raise ValueError(
            f"teacher.model: {name} in evaluation mode gives another answer at each pass for the same input, which "
            "students cannot learn; see whether a dropout stays on (pass training=self.training) or observers of a "
            "quantisation do (net.apply(torch.ao.quantization.disable_observer))"
        )
    other = context.teacher_examples(2)[1:] if of_flat is None else flat
    if _depends_on_the_batch(model.eval(), example, other):
        raise ValueError(
            f"teacher.model: {name} in evaluation mode gives another answer for {context.input_type.item} when another "
            "one is in the batch, so that all figures would depend on the batch size; let BatchNorm have running "
            "statistics (track_running_stats=True) and stay in evaluation mode, and do not mix or sort the batch"
        )
    model.train(mode)


def prepare_latency(context: CampaignContext, run_dir: Path, threads: int, progress: OnProgress = no_progress) -> None:
    """Measure the latency of all candidates, for a budget of latency. Done once a campaign, for all trials.

    Args:
        context: gets the tables.
        run_dir: keeps them.
        threads: as many as a trial has.
        progress: called with the share that is done and a text.
    """
    tables = all_knobs(context.space)
    with using_threads(threads):
        # What was measured for other candidates, or elsewhere, is measured again.
        place = {name: environment(str(context.device))[name] for name in ("torch", "device", "threads", "host")}
        key = json.loads(json.dumps({**place, "space": context.space.settings}))
        for i, knobs in enumerate(tables):
            path = latency_file(context.space, knobs, run_dir)
            known: dict[str, Any] = {}
            with contextlib.suppress(FileNotFoundError, DamagedFileError):  # it is measured again
                known = read_json(path, "")
            if known.get("of") != key:
                at = ", ".join(f"{name} {value}" for name, value in knobs.items())
                progress(i / len(tables), f"latency of candidates, {at}")
                table = context.input_type.latency_table(context.space, knobs, context.device)
                known = {"of": key, "table": table.to_json()}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(path, json.dumps(known) + "\n")
            context.latencies[latency_name(context.space, knobs)] = CostTable.from_json(known["table"])
