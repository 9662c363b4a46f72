"""A net of the user's as a teacher: it takes what campaigns give, gives what tasks read, and its maps can be distilled.

`adapt` runs the net on a small fixed input, before any training and before weights are loaded, to see which layout of a
clip it takes and which of its outputs is the answer; layers and buffers that are made in the first pass exist
afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from nas_kd.callbacks import Note
from nas_kd.search_spaces.nested import Path
from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.teachers.input_form import InputForm
from nas_kd.teachers.layouts import Inputs, Layout, lay_out
from nas_kd.teachers.map_forms import MapForm, find_forms
from nas_kd.teachers.output_form import OutputForm
from nas_kd.teachers.outputs import check_indices, describe, pick


class AdaptedTeacher(nn.Module):
    """A net of the user's with its inputs and outputs in the form that campaigns know.

    Args:
        net: of the user's.
        inputs: what is made of a clip; the layout is known.
        outputs: which output is the answer.
        forms: module -> how its output is read as a map.
    """

    def __init__(
        self, net: nn.Module, inputs: InputForm, outputs: OutputForm, forms: Mapping[str, MapForm] | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.inputs, self.outputs = inputs, outputs
        self.forms: dict[str, MapForm] = dict(forms or {})
        self.writes_input = False  # as a net does that normalises it in place; then it gets a copy
        self._num_items = 1

    @property
    def tapped(self) -> nn.Module:
        """The net whose modules are tapped, by their own names."""
        return self.net

    @property
    def is_plain(self) -> bool:
        """Whether the net itself takes and gives what campaigns do."""
        default = InputForm(layout="NCTHW", strides=self.inputs.strides, given=self.inputs.given)
        return self.inputs == default and self.outputs.path == () and self.outputs.picked is None

    @property
    def seen_size(self) -> tuple[int, int] | None:
        """(H, W) that the net sees, where it is not that of its input."""
        return self.inputs.size

    def lay_out(self, clip: Tensor) -> Inputs:
        """What the net takes for a clip, frames or features."""
        if clip.ndim < 4:
            return clip
        fitted = self.inputs.fit(clip.clone() if self.writes_input else clip)
        layout = self.inputs.layout
        assert layout != "auto", "the layout is known"
        return fitted if clip.ndim == 4 else lay_out(fitted, layout, self.inputs.strides)

    def as_map(self, name: str, output: Any) -> Any:
        """The output of a module of the net as a map (N, C, T, H, W) or (N, C, H, W), where its form is known."""
        form = self.forms.get(name)
        return output if form is None else form.convert(output, self._num_items)

    def forward(self, clip: Tensor) -> Any:
        """The answer for a clip (N, 3, T, H, W), frames (N, 3, H, W) or features (N, T, D)."""
        self._num_items = len(clip)
        rows = (len(clip), len(clip) * (self.inputs.frames or clip.shape[2])) if clip.ndim == 5 else (len(clip),)
        return self.outputs.take(self.net(self.lay_out(clip)), rows)


def bare(model: nn.Module) -> nn.Module:
    """The net of the user's in an adapted teacher; any other model is itself."""
    return model.net if isinstance(model, AdaptedTeacher) else model


def layers_of(model: nn.Module) -> nn.Module:
    """A teacher as a space that is made of its layers takes it: the net itself, where it needs no adapting."""
    return model.net if isinstance(model, AdaptedTeacher) and model.is_plain else model


@dataclass
class _Attempt:
    """What a net gave for a layout."""

    layout: Layout
    output: Any = None
    error: Exception | None = None
    paths: list[Path] = field(default_factory=list)
    answer: Tensor | None = None

    @property
    def runs(self) -> bool:
        return self.error is None


def adapt(
    net: nn.Module, name: str, inputs: InputForm, outputs: OutputForm, probe: Tensor, item: str, note: Note
) -> AdaptedTeacher:
    """A net of the user's as a teacher, without weights yet.

    Args:
        net: in any mode.
        name: of the model in the campaign file.
        inputs: what the campaign file says about them.
        outputs: what the campaign file says about them.
        probe: two inputs of the campaign, with values such as the data have.
        item: what each of them is, for sentences.
        note: called with a sentence on what was found.

    Raises:
        ValueError: the net cannot run, takes clips in two layouts, or gives several outputs that could be the answer.
    """
    if outputs.picked is not None:
        check_indices(outputs.picked, outputs.num_outputs)
    clips = probe.ndim == 5
    if not clips:
        inputs = _for_other_than_clips(inputs)
    attempts = _attempts(net, inputs, outputs, probe)
    running = [attempt for attempt in attempts if attempt.runs]
    for other, sentence in _other_forms(inputs, probe, running):
        if found := [attempt for attempt in _attempts(net, other, outputs, probe) if attempt.runs]:
            running, inputs = found, other
            note(sentence.format(name=name))
            break
    fitting = [attempt for attempt in running if attempt.paths]
    if not running and probe.ndim == len("NCHW") and _reads_clips(net, probe):
        raise ValueError(
            f"teacher.model: {name} takes clips, but this task and space look at single frames, of shape "
            f"{tuple(probe.shape)[1:]}; take a net of frames, or let one learn the maps of this net (docs/teachers.md, "
            "segmentation nets of clips)"
        )
    if not running and (odd := _odd_signature(net)):
        raise ValueError(
            f"teacher.model: the forward of {name} must take one input, {item} of the data, but takes {odd}; let the "
            "function return a module around the net that calls it so"
        )
    if not running:
        raise ValueError(_cannot_read(name, item, probe, inputs, attempts))
    chosen = _choose(fitting, name) if fitting else running[0]
    if len(chosen.paths) > 1:
        named = ", ".join(".".join(path) for path in chosen.paths)
        raise ValueError(
            f"teacher.output: {name} gives several outputs of the shape that the task needs ({named}); name the one to "
            f"distil, such as teacher.output: {'.'.join(chosen.paths[0])}"
        )
    if outputs.path is not None and not chosen.paths:
        raise ValueError(
            f"teacher.output: {name} has no output {'.'.join(outputs.path)!r} for {outputs.num_outputs} classes; it "
            f"gives {describe(chosen.output)}"
        )
    path = chosen.paths[0] if chosen.paths else None
    teacher = AdaptedTeacher(
        net, replace(inputs, layout=chosen.layout), OutputForm(path, outputs.picked, outputs.num_outputs, outputs.maps)
    )
    if clips and inputs.layout == "auto" and chosen.layout != "NCTHW":
        note(f"teacher.input_layout: {name} takes clips as {chosen.layout}")
    if path and outputs.path is None:
        note(f"teacher.output: of what {name} gives, {'.'.join(path)!r} is taken as its answer")
    if clips and chosen.answer is not None and chosen.answer.ndim == 2 and len(chosen.answer) > 2:
        note(f"teacher.output: {name} gives one row for each frame; the mean over the frames is its answer")
    if chosen.answer is not None and chosen.answer.ndim > 2 and not outputs.maps:
        shape = tuple(chosen.answer.shape)
        note(f"teacher.output: {name} gives {shape} for two clips; the mean over frames and places is its answer")
    before = probe._version
    _run(net, lambda module: module(teacher.lay_out(probe)))  # what is made in the first pass
    teacher.writes_input = probe._version != before
    return teacher


def _other_forms(inputs: InputForm, probe: Tensor, running: Sequence[_Attempt]) -> Iterator[tuple[InputForm, str]]:
    """Other forms of the input that are tried where a net does not run, with what is then said.

    A list of one clip is tried, too, where it runs on a list of several: it may read the first one alone.
    """
    lists = probe.ndim == 5 and inputs.layout in ("auto", "pathways") and len(inputs.strides) > 1
    if lists and (not running or (inputs.layout == "auto" and {each.layout for each in running} == {"pathways"})):
        yield (
            replace(inputs, layout="pathways", strides=(1,)),
            "teacher.input_layout: {name} takes a list of one clip, pathways with teacher.pathway_strides: [1]",
        )
    if not running and probe.ndim > 3:  # pixels
        if inputs.normalize is None:
            yield (
                replace(inputs, normalize=NormalizeConfig(mean=(0, 0, 0), std=(1, 1, 1))),
                "teacher.normalize: {name} refuses normalised pixels and takes those from 0 to 1, which it gets",
            )
        yield (
            replace(inputs, as_bytes=True),
            "teacher.model: {name} takes bytes, so pixels reach it as uint8 from 0 to 255, whatever `normalize`",
        )


def _for_other_than_clips(inputs: InputForm) -> InputForm:
    if inputs.layout not in ("auto", "NCTHW") or inputs.frames is not None or inputs.size is not None:
        raise ValueError(
            "teacher.input_layout, input_frames and input_size are for teachers of clips, but this one reads single "
            "frames or features; leave them out"
        )
    return InputForm("NCTHW", inputs.strides, None, None, inputs.normalize, inputs.given)


def _run(net: nn.Module, call: Callable[[nn.Module], Any]) -> Any:
    """A pass in evaluation mode, without gradient; modes and random numbers stay as they were."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net.eval()  # by itself, as everywhere: train() of a user's net may return nothing
            return call(net)
    finally:
        for module, mode in modes:
            module.training = mode


def _reads_clips(net: nn.Module, frames: Tensor) -> bool:
    """Whether a net runs on clips of such frames, of one of the usual lengths."""
    for length in (4, 8, 16):
        clips = frames[:, :, None].repeat(1, 1, length, 1, 1)
        with contextlib.suppress(Exception):  # whatever a net raises for an input that it does not take
            _run(_copied(net), partial(_called, inputs=clips))
            return True
    return False


def _called(net: nn.Module, inputs: Tensor) -> Any:
    return net(inputs)


def _attempts(net: nn.Module, inputs: InputForm, outputs: OutputForm, probe: Tensor) -> list[_Attempt]:
    """What the net gives for each layout that it may take, as far as they decide."""
    options: Sequence[Layout] = get_args(Layout) if inputs.layout == "auto" else (inputs.layout,)
    attempts: list[_Attempt] = []
    for layout in options:
        attempts.append(_try(net, layout, inputs, outputs, probe, alone=len(options) == 1))
        if sum(bool(attempt.paths) for attempt in attempts) == 1 and len(attempts) > 1:
            break  # one layout alone; with the first two of them, others decide
    return attempts


def _try(
    net: nn.Module, layout: Layout, inputs: InputForm, outputs: OutputForm, probe: Tensor, *, alone: bool
) -> _Attempt:
    """One layout, on a copy of the net: a pass that fails may leave buffers of a wrong shape behind."""
    form = replace(inputs, layout=layout)
    open_output = AdaptedTeacher(net, form, outputs)
    attempt = _Attempt(layout)
    several = layout == "pathways" and max(form.strides) > 1
    if several and probe.ndim == 5 and min(probe.shape[2], form.frames or probe.shape[2]) < 2:
        attempt.error = ValueError("one frame")
        return attempt
    try:
        copied = net if alone else _copied(net)
        shown = open_output.lay_out(probe.clone())
        attempt.output = _run(copied, lambda module: module(shown))
    except Exception as error:
        attempt.error = error
        return attempt
    frames = (form.frames or probe.shape[2]) if probe.ndim == 5 else 1
    rows = (len(probe), len(probe) * frames) if probe.ndim == 5 else (len(probe),)
    if outputs.path is not None:
        try:
            picked = pick(attempt.output, outputs.path)
            if outputs.fits(picked, rows) or outputs.fits_averaged(picked, rows):
                attempt.paths = [outputs.path]
        except KeyError:
            pass
    else:
        attempt.paths = outputs.find(attempt.output, rows)
    if attempt.paths:
        attempt.answer = pick(attempt.output, attempt.paths[0])
    return attempt


def _copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except Exception:  # some nets cannot be copied
        return net


def _choose(fitting: Sequence[_Attempt], name: str) -> _Attempt:
    """The layout of a net that runs with some of them.

    A net that reshapes its input runs with several. Frames and (N, T, C, H, W) have the same order in memory, so a net
    that answers alike for N · T frames and for N clips of them reads clips frame by frame.
    """
    by_layout = {attempt.layout: attempt for attempt in fitting}
    first = fitting[0]
    other = by_layout.get("NTCHW")
    if first.layout != "NCTHW" or other is None or _same(first, other):
        return first
    if "frames" in by_layout and _same(by_layout["frames"], other):
        return other
    raise ValueError(
        f"teacher.input_layout: {name} runs on clips as (N, 3, T, H, W) and as (N, T, 3, H, W), with other answers; "
        "set it to NCTHW or NTCHW"
    )


def _same(one: _Attempt, other: _Attempt) -> bool:
    if one.answer is None or other.answer is None or one.answer.shape != other.answer.shape:
        return False
    return torch.allclose(one.answer, other.answer, rtol=1e-4, atol=1e-5, equal_nan=True)


def _odd_signature(net: nn.Module) -> str:
    """What a net's forward takes, where it cannot be called with one tensor; empty where it can or nobody knows."""
    try:
        signature = inspect.signature(net.forward)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(None)
    except TypeError:
        return str(signature.replace(return_annotation=inspect.Signature.empty))
    return ""


def _cannot_read(name: str, item: str, probe: Tensor, inputs: InputForm, attempts: Sequence[_Attempt]) -> str:
    reasons = []
    for attempt in attempts[:2]:
        reason = f"{type(attempt.error).__name__}: {' '.join(str(attempt.error).split())[:120]}"
        reasons.append(reason if len(attempts) == 1 else f"{attempt.layout}: {reason}")
    ways = "change its settings or the data's, or choose another teacher"
    if probe.ndim == 5:
        ways = (
            "set teacher.input_layout, teacher.input_size or teacher.input_frames to what it takes, let the function "
            "return a module around the net that takes (N, 3, T, H, W), or change data"
        )
    more = f" (and {len(attempts) - 2} more layouts)" if len(attempts) > 2 else ""
    return (
        f"teacher.model: {name} cannot read {item} of the data, of shape {tuple(probe.shape)[1:]}; {ways} (it "
        f"stopped with {'; '.join(reasons)}{more})"
    )


def with_forms(teacher: AdaptedTeacher, example: Tensor) -> AdaptedTeacher:
    """The teacher with the forms of its maps: which modules give tokens, or maps of frames that lie in the batch.

    Args:
        teacher: with its weights.
        example: one input of the campaign, with values such as the data have.

    Raises:
        ValueError: the net does not take batches of another size.
    """
    if example.ndim < 4:
        return teacher

    def run(clips: Tensor) -> Any:
        try:
            return _run(teacher.net, lambda module: module(teacher.lay_out(clips)))
        except Exception as error:  # whatever a net raises for a batch of another size than it took before
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(
                f"teacher.model: {type(teacher.net).__name__} takes a batch of 2 but not one of {len(clips)} "
                f"({reason}); make its forward pass fit any number of clips"
            ) from error

    fitted = teacher.inputs.fit(example)
    teacher.forms = find_forms(
        teacher.net, run, example, frames=fitted.shape[2] if fitted.ndim == 5 else None, size=tuple(fitted.shape[-2:])
    )
    return teacher
