"""The parts that work on any task: responses, feature maps, maps across resolutions, delta layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor, nn

from nas_kd.mistakes import choose
from nas_kd.objectives.cross_resolution import (
    apply_classifier,
    cross_resolution,
    cross_resolution_logits,
    find_classifier,
)
from nas_kd.objectives.delta import DeltaLoss, delta_pairs
from nas_kd.objectives.feature import feature
from nas_kd.objectives.maps import adapter_for, matched_frames
from nas_kd.objectives.part import Nets, Pairs, Part
from nas_kd.objectives.response import response, response_of_labels
from nas_kd.objectives.terms import CrossResolutionTerm, DeltaTerm, FeatureTerm, ResponseTerm
from nas_kd.taps import ModelOutput, last_maps, tappable
from nas_kd.tasks import Batch
from search_spaces.delta_blocks import delta_net_of

MAP_KEYS = {
    "feature": ("feature.pairs", "feature.pairs"),
    "cross_resolution": ("cross_resolution.student", "cross_resolution.teacher"),
}
"""Term of maps -> keys that name modules of the student and of the teacher."""


class ResponsePart(Part):
    """The teacher's logits."""

    def __init__(self, term: ResponseTerm, nets: Nets) -> None:
        super().__init__()
        self.weights = {"response": term.weight}
        self._distance = response_of_labels if nets.task.outputs == "labels" else response
        self._kd_temperature = term.kd_temperature
        if nets.task.outputs == "values":
            raise ValueError(
                f"response: task {type(nets.task).__name__.lower()} has no logits of classes that could be softened; "
                "set response.weight to 0 and distil maps"
            )

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        if student.logits.ndim == 2:  # those of frames are brought into one form by the learner
            self._distance(student.logits, teacher.logits, self._kd_temperature)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        return {"response": self._distance(student.logits, teacher.logits, self._kd_temperature)}


class MapPart(Part):
    """Feature maps of pairs of modules, the mean over pairs.

    Args:
        name: of the term.
        weight: likewise.
        pairs: (module of the student, module of the teacher) each.
        distance: of (adapted student map, teacher map).
        nets: what it is built for.
    """

    def __init__(
        self, name: str, weight: float, pairs: Pairs, distance: Callable[[Tensor, Tensor], Tensor], nets: Nets
    ) -> None:
        super().__init__()
        self.name, self._distance = name, distance
        self.weights = {name: weight}
        self.tap(pairs, *MAP_KEYS[name])
        self.ranks = (4, 5)
        self._varying_width = nets.varying_width
        self.adapters = nn.ModuleList()

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        for ours, theirs in self.pairs:
            small, large = student.features[ours], teacher.features[theirs]
            for key, module, found in zip(MAP_KEYS[self.name], (ours, theirs), (small, large), strict=True):
                if found.ndim not in (4, 5):
                    raise ValueError(
                        f"{key}: maps have the form (N, C, H, W) or (N, C, T, H, W), but {module!r} gives "
                        f"{tuple(found.shape)}; name a module that gives maps, or set {self.name}.weight to 0"
                    )
            self.adapters.append(adapter_for(small, large, always=self._varying_width))
        try:
            self(student, teacher, {})
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        values = [
            self._distance(adapter(student.features[ours]), teacher.features[theirs])
            for adapter, (ours, theirs) in zip(self.adapters, self.pairs, strict=True)
        ]
        return {self.name: torch.stack(values).mean()}


class PositionLogitsPart(Part):
    """What both classifiers say at every position of two maps: the transformer form of cross-resolution."""

    def __init__(self, term: CrossResolutionTerm, pair: tuple[str, str], nets: Nets) -> None:
        super().__init__()
        self.weights = {"cross_resolution": term.weight}
        self.tap([pair], *MAP_KEYS["cross_resolution"])
        self.ranks = (4, 5)
        self._kd_temperature = term.kd_temperature
        # In a tuple, so that they are not parts of this module: both belong to their nets.
        self._classifiers = (
            _classifier("student", nets.student, term.student_classifier, nets.task.num_outputs),
            _classifier("teacher", nets.teacher, term.teacher_classifier, nets.task.num_outputs),
        )

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        ((ours, theirs),) = self.pairs
        maps = (student.features[ours], teacher.features[theirs])
        key = "cross_resolution"
        try:
            matched_frames(maps[1], maps[0])
            for who, features, classifier in zip(("student", "teacher"), maps, self._classifiers, strict=True):
                key = f"cross_resolution.{who}_classifier"
                apply_classifier(classifier, features)
            self(student, teacher, {})
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        ((ours, theirs),) = self.pairs
        value = cross_resolution_logits(
            student.features[ours], teacher.features[theirs], *self._classifiers, self._kd_temperature
        )
        return {"cross_resolution": value}


class DeltaPart(Part):
    """Every delta layer against the teacher's."""

    def __init__(self, term: DeltaTerm, nets: Nets) -> None:
        super().__init__()
        net = delta_net_of(nets.student)
        if net is None:
            raise ValueError("the delta objective needs a student of space delta_blocks; set delta.weight to 0")
        self.weights = {"delta": term.weight}
        self.tap(delta_pairs(name for name, layer in net.layers().items() if layer.student is not None))
        self.loss = DeltaLoss(len(self.pairs), term.normalize, term.reference)
        self._active_share = term.active_share

    def is_active(self, progress: float) -> bool:
        return progress < self._active_share

    def calibrate(self, key: ModelOutput, frame: ModelOutput) -> None:
        """Measure the scales, once, from the teacher's maps at key frames and at later ones."""
        self.loss.calibrate(
            [key.features[name] for name in self.teacher_taps], [frame.features[name] for name in self.teacher_taps]
        )

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        ours = [student.features[name] for name in self.student_taps]
        return {"delta": self.loss(ours, [teacher.features[name] for name in self.teacher_taps])}


def feature_part(term: FeatureTerm, nets: Nets) -> Part:
    """The part of the `feature` term."""
    named = tuple((_in_student(nets.student, ours), theirs) for ours, theirs in term.pairs or ())
    return MapPart("feature", term.weight, named or _scale_pairs("feature", nets), feature, nets)


def cross_resolution_part(term: CrossResolutionTerm, nets: Nets) -> Part:
    """The part of the `cross_resolution` term, in either form."""
    ours = _in_student(nets.student, term.student) if term.student else None
    if ours is None or term.teacher is None:
        last = _scale_pairs("cross_resolution", nets)[-1]
        pair = (ours or last[0], term.teacher or last[1])
    else:
        pair = (ours, term.teacher)
    if term.form == "logits":
        return PositionLogitsPart(term, pair, nets)
    return MapPart("cross_resolution", term.weight, (pair,), cross_resolution, nets)


def _classifier(who: str, net: nn.Module, name: str | None, num_outputs: int) -> nn.Module:
    modules, key = tappable(net), f"cross_resolution.{who}_classifier"
    if name is None:
        try:
            name = find_classifier(net, num_outputs)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if name not in modules:
        linear = [n for n, module in modules.items() if isinstance(module, nn.Linear)]
        raise ValueError(f"{key}: the {who} has no module {name!r}; {choose(name, linear)}")
    return modules[name]


def _in_student(student: nn.Module, name: str) -> str:
    """The student's module of that name; a delta student has the modules of its teacher, below `net`."""
    return name if delta_net_of(student) is None or name.startswith("net.") else f"net.{name}"


def _scale_pairs(term: str, nets: Nets) -> Pairs:
    """The last map of each scale of both nets, from the smallest up.

    The student is looked at with as many pixels as the teacher: a small resolution would leave its last map one pixel,
    which is no scale, and trials of one campaign would compare different modules.
    """
    theirs = _maps_of("teacher", nets.teacher, nets.teacher_example, term)
    if delta_net_of(nets.student) is not None:
        return delta_pairs(theirs)  # the teacher's own modules, with delta layers among them
    ours: tuple[str, ...] = ()
    if nets.example.ndim in (4, 5) and nets.teacher_example.ndim in (4, 5):
        enlarged = nets.example.new_zeros(*nets.example.shape[:-2], *nets.teacher_example.shape[-2:])
        with suppress(Exception):  # a net for one size only, however it says so, has its own maps to go by
            ours = last_maps(nets.student, enlarged)
    ours = ours or _maps_of("student", nets.student, nets.example, term)
    count = min(len(ours), len(theirs))
    return cast(Pairs, tuple(zip(ours[-count:], theirs[-count:], strict=True)))


def _maps_of(who: str, net: nn.Module, example: Tensor, term: str) -> tuple[str, ...]:
    if not (names := last_maps(net, example)):
        raise ValueError(
            f"{term}: no module of the {who} gives feature maps, (N, C, H, W) or (N, C, T, H, W) of more than one "
            f"pixel; set {term}.weight to 0, or name modules at {' and '.join(dict.fromkeys(MAP_KEYS[term]))}"
        )
    return names
