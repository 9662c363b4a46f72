"""A student on disk: `student.safetensors` and `arch.json`, free of classes and of code.

`arch.json` says everything that is needed to build the net again, to prepare its input and to read its output. It has
the SHA-256 of the other files and one of its own content, so that damaged, exchanged and edited files are found. Who
writes all of them anew can still make a bundle that fits itself: the hashes are no signature.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.label_form import LabelForm
from nas_kd.deploy.claims import MAX_ARCH_BYTES, check_claims
from nas_kd.deploy.student_view import StudentView
from nas_kd.files import save_tensors, sha256_of, write_text_atomically
from nas_kd.inputs import InputType, input_type_of_bundle
from nas_kd.search_spaces import SPACES, ArchSpec, KeyFrameNet, SearchSpace
from nas_kd.search_spaces.registry import SpaceEntry
from nas_kd.settings.mistakes import explain
from nas_kd.teachers import TEACHERS

WEIGHTS_NAME, ARCH_NAME = "student.safetensors", "arch.json"
SCHEMA_VERSION = 1
MIN_TRAININGS = 3  # fewer tell nothing about the spread: with two, it is 25 standard errors wide


class NeedsCodeError(ValueError):
    """The net of a bundle can only be built with code of the user's, or a package, which is not there."""


class OverSeeds(BaseModel):
    """A metric over trainings with different seeds.

    Attributes:
        mean: over the trainings.
        low: lower end of the 95 % interval of the mean (Student's t); None for fewer than three trainings.
        high: its upper end.
        values: of each training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        """Mean and interval of the values of the trainings."""
        mean, low, high = fmean(values), None, None
        if len(values) >= MIN_TRAININGS:
            from scipy import stats  # here: it costs seconds that users of exported students need not wait

            half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
            low, high = mean - half, mean + half
        return cls(mean=mean, low=low, high=high, values=tuple(values))


class SeveralTrainings(BaseModel):
    """Of a student that was trained with several seeds: which training the weights are of, and what all reached.

    Attributes:
        chosen: number of the training whose weights these are, from 0.
        chosen_by: how it was chosen.
        metrics: split -> metric -> its values over all trainings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chosen: int
    chosen_by: str = "the best primary metric on the validation split"
    metrics: Mapping[str, Mapping[str, OverSeeds]]

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float]], chosen: int) -> SeveralTrainings:
        """From `split/metric` -> value of each training."""
        metrics: dict[str, dict[str, OverSeeds]] = {}
        for key, each in values.items():
            split, _, name = key.partition("/")
            metrics.setdefault(split, {})[name] = OverSeeds.of(each)
        return cls(chosen=chosen, metrics=metrics)


class Measured(BaseModel):
    """What a metric of a bundle rests on.

    Attributes:
        num_items: items of the split.
        num_groups: groups that they come from, such as recordings; None where items are independent.
        views: clips and crops of each item whose outputs are averaged.
        low: lower end of the 95 % interval of the primary metric over items; None where there is none.
        high: its upper end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_items: int
    num_groups: int | None = None
    views: int = 1
    low: float | None = None
    high: float | None = None


class BundleInfo(BaseModel):
    """What stands in `arch.json`, beside `digest`, the SHA-256 of all of it.

    Attributes:
        schema_version: of this file.
        arch: the architecture, as `ArchSpec` writes it.
        arch_id: its content hash.
        input_shape: of one clip, (3, T, H, W), after normalisation; of a student that runs frame by frame, T is its
            key-frame interval. Of frame features (T, D), which are read as they are.
        mean: of R, G, B in shares of full brightness; the input is (clip / 255 − mean) / std. None for frame features.
        std: standard deviation of R, G, B in shares of full brightness, as for `mean`.
        source_frames: frames of a clip as the teacher sees it, from which the student's are taken, uniformly unless
            the architecture names another selector.
        source_size: (H, W) of such a clip; the student's input is its bilinear resampling. (0, 0) for features.
        decoding: how files became clips of `source_frames` and `source_size`; None where the data were no files.
        labels: how the labels of the files were written; None where they stood in no table of files.
        view: what the student reads of a normalised clip; None where only its space can tell.
        class_names: meaning of the logits.
        task: what the student was trained for.
        task_options: options of the task.
        data: short name of the data that it was trained on.
        teacher: the teacher's name, as in the campaign file.
        trial: its trial, or None.
        seed: of the training of these weights.
        flops: of one clip; of a student that runs frame by frame, amortised a frame, rounded up.
        params: number of parameters.
        metrics: split -> metric -> value of these weights.
        measured: split -> what the metrics rest on.
        trainings: of a student that was trained with several seeds.
        license: of the weights, where somebody has stated one.
        intended_use: what the student is meant for, where somebody has stated it.
        keyframe_interval: K of a student that runs frame by frame; None for others, as all that follows.
        keyframe_flops: of a key frame.
        delta_flops: of a frame after a key frame.
        state_bytes: of one stream.
        form: of the delta layers; None is `delta`.
        files: name of each other file of the bundle -> SHA-256 of its bytes.

    Examples:
        >>> student, info = nas_kd.load_bundle("runs/demo/export/trial-0000")
        >>> info.task, info.source_frames, info.source_size
        ('classification', 4, (16, 16))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    arch: Mapping[str, Any]
    arch_id: str
    input_shape: tuple[int, ...] = Field(min_length=2, max_length=4)
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    source_frames: int
    source_size: tuple[int, int]
    decoding: FileDecoding | None = None
    labels: LabelForm | None = None
    view: StudentView | None = None
    class_names: tuple[str, ...]
    task: str
    task_options: Mapping[str, Any] = Field(default_factory=dict)
    data: str = ""
    teacher: str = ""
    trial: int | None = None
    seed: int
    flops: int
    params: int
    metrics: Mapping[str, Mapping[str, float]]
    measured: Mapping[str, Measured] = Field(default_factory=dict)
    trainings: SeveralTrainings | None = None
    license: str = ""
    intended_use: str = ""
    keyframe_interval: int | None = None
    keyframe_flops: int | None = None
    delta_flops: int | None = None
    state_bytes: int | None = None
    form: Literal["delta", "residual"] | None = None
    files: Mapping[str, str] = Field(default_factory=dict)

    @property
    def input_type(self) -> type[InputType]:
        """How the data reach the student."""
        return input_type_of_bundle(self.input_shape, self.mean, self.keyframe_interval)

    def prepare(self, items: Tensor, space: SearchSpace | None = None) -> Tensor:
        """What the student reads, from what the data hold: as in its trial.

        Bytes are normalised, then frames are chosen and resampled; of frame features, frames are chosen. The selector
        `random` draws from torch's global generator.

        Args:
            items: clips, uint8 (N, 3, T, H, W), or frames, uint8 (N, 3, H, W), where the student sees single ones; or
                frame features (N, T, D) of any floating-point type. T is `source_frames` in training; what the
                student's space allows, else.
            space: needed where the bundle states no `view` and the student's space is your own, as by `load_bundle`.

        Returns:
            float32 (N, *input_shape); for a student that runs frame by frame of as many frames as were given.

        Raises:
            ValueError: items of another kind or shape.
        """
        read = self.input_type.prepare(items, self.input_shape, self.mean, self.std)
        if not self.input_type.students_fit_items:
            return read
        if self.view is not None and read.shape[1 if read.ndim == 3 else 2] == self.source_frames:
            return self.view.of(read)
        arch = ArchSpec.from_dict(self.arch)
        space = space or _space_of(arch)
        return space.fit_input(read, space.knobs_of(arch))


def save_bundle(folder: Path | str, student: nn.Module, info: BundleInfo) -> None:
    """Write the two files, each atomically; `arch.json` last, so that a bundle with it is complete.

    Examples:
        >>> student, info = nas_kd.load_bundle("runs/demo/export/trial-0000")
        >>> nas_kd.save_bundle("copy", student, info)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(student.state_dict(), folder / WEIGHTS_NAME, {"arch_id": info.arch_id})
    write_info(folder, info, (WEIGHTS_NAME,))


def write_info(folder: Path | str, info: BundleInfo, files: Sequence[str]) -> BundleInfo:
    """Write `arch.json` with the hashes of files that are in the folder already; returns what was written."""
    hashes = {name: sha256_of(Path(folder) / name) for name in files}
    info = info.model_copy(update={"files": hashes})
    content = info.model_dump(mode="json")
    content["digest"] = digest_of(content)
    write_text_atomically(Path(folder) / ARCH_NAME, json.dumps(content, indent=2) + "\n")
    return info


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of what stands in an `arch.json`, whatever its line breaks and the order of its keys."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_file(folder: Path | str, info: BundleInfo, name: str) -> Path:
    """The path of a file of a bundle.

    Raises:
        ValueError: the bundle does not have it, or it is not the file that was written with the bundle.
    """
    path = Path(folder) / name
    if name not in info.files:
        raise ValueError(f"the bundle {folder} has no {name}, but {', '.join(info.files)}; export it again with it")
    if not path.is_file():
        raise ValueError(f"{name} was written with the bundle {folder} and is gone; export the bundle again")
    if sha256_of(path) != info.files[name]:
        raise ValueError(
            f"{path} is not the file that was written with {ARCH_NAME}: its SHA-256 differs, so it was damaged, cut "
            "short or exchanged; export the bundle again"
        )
    return path


def load_bundle(folder: Path | str, space: SearchSpace | None = None) -> tuple[nn.Module, BundleInfo]:
    """The student of a bundle, in evaluation mode, and what is known about it. Runs no code of the bundle.

    Args:
        folder: with the two files.
        space: the student's search space; needed where it is not one of `nas_kd.search_spaces.SPACES`, where it has
            operators of your own, and where it was derived from a teacher of your own.

    Raises:
        ValueError: a file is missing or does not fit, or the space is not known here.

    Examples:
        >>> student, info = nas_kd.load_bundle("runs/demo/export/trial-0000")
        >>> clips = torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8)
        >>> student(info.prepare(clips)).shape
        torch.Size([2, 4])
    """
    folder = Path(folder)
    info = read_info(folder)
    arch = ArchSpec.from_dict(info.arch)
    if arch.arch_id != info.arch_id:
        raise ValueError(f"{folder / ARCH_NAME} was changed: its architecture is {arch.arch_id}, not {info.arch_id}")
    try:
        if space is None:
            space = _space_of(arch)
            # A setting that the space got after the bundle was written has its default.
            student = space.student(ArchSpec(arch.space, space.settings, arch.choices))
        else:
            student = space.student(arch)
    except (RuntimeError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the net that {folder / ARCH_NAME} describes cannot be built here: {reason}") from error
    interval = student.keyframe_interval if isinstance(student, KeyFrameNet) else None
    if interval != info.keyframe_interval:
        raise ValueError(
            f"{folder / ARCH_NAME} states keyframe_interval {info.keyframe_interval}, but that of its architecture is "
            f"{interval}; take the bundle from its trial again"
        )
    try:
        with safe_open(folder / WEIGHTS_NAME, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS_NAME} cannot be read, so it was damaged, cut short or exchanged; export the bundle "
            f"again ({' '.join(str(error).split())[:300]})"
        ) from error
    try:
        trained_arch = metadata.get("arch_id")
        if trained_arch != arch.arch_id:
            raise ValueError(f"they were trained for architecture {trained_arch}")
        student.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights of {folder} do not fit architecture {arch.arch_id}: {reason}") from error
    check_file(folder, info, WEIGHTS_NAME)
    if info.form is not None:
        student = info.input_type.student_in_form(student, info.form)
    if isinstance(student, KeyFrameNet) and info.mean is not None and info.std is not None:
        ends = [(end - mean) / std for mean, std in zip(info.mean, info.std, strict=True) for end in (0, 1)]
        student.pixel_range = min(ends), max(ends)
    return student.eval(), info


def _space_of(arch: ArchSpec) -> SearchSpace:
    """The space of an architecture, from its settings alone."""
    if arch.space not in SPACES:
        raise NeedsCodeError(
            f"the student's space {arch.space!r} is your own: pass it as load_bundle(folder, space), or run the "
            "bundle's graphs, which need no code (backend pt2 or onnx)"
        )
    entry, settings = SPACES[arch.space], arch.as_dict()["settings"]
    if own := entry.own_operators(settings):
        raise NeedsCodeError(
            f"the student may have operators of your own, {', '.join(own)}: build its space with "
            f"SPACES[{arch.space!r}].make(settings, operators={{name: function}}) and pass it as "
            "load_bundle(folder, space)"
        )
    try:
        return _made(entry, arch, settings)
    except ModuleNotFoundError as error:  # the layers of a delta student are planned by FLOPs, which fvcore counts
        package = (error.name or "").partition(".")[0]
        raise NeedsCodeError(
            f"the weights of this student need {package}, which is not installed: pip install {package}, or run the "
            "bundle's graphs, which do not need it (backend pt2 or onnx)"
        ) from error
    except ValidationError as error:
        sentences = "; ".join(explain(error, entry.settings, settings))
        raise ValueError(
            f"the settings of space {arch.space!r} are not those of this nas_kd: {sentences}; use the one that wrote "
            "the bundle"
        ) from error


def _made(entry: SpaceEntry, arch: ArchSpec, settings: dict[str, Any]) -> SearchSpace:
    if not entry.derived:
        return entry.make(settings)
    identity, size = settings.pop("teacher", {}), settings.pop("frame_size", ())
    if identity.get("model") not in TEACHERS:
        raise NeedsCodeError(
            f"the student was derived from a teacher of your own, {identity.get('model')!r}: build its space with "
            f"{entry.build.__name__}(settings, teacher, frame_size, identity) and pass it as load_bundle(folder, space)"
        )
    with torch.random.fork_rng(devices=[]):  # fresh weights, all of which the bundle replaces
        teacher = TEACHERS[identity["model"]].build(identity["num_outputs"], identity["settings"])
        return entry.make(settings, teacher, tuple(size), identity)


def read_info(folder: Path | str) -> BundleInfo:
    """What stands in the `arch.json` of a bundle.

    Raises:
        ValueError: a file of the bundle is missing, or this one is damaged or of another version.
    """
    for name in (ARCH_NAME, WEIGHTS_NAME):
        if not (Path(folder) / name).is_file():
            raise ValueError(
                f"a bundle holds {ARCH_NAME} and {WEIGHTS_NAME}, but {folder} has no {name}; name a folder that "
                "nas-kd export has written"
            )
    path = Path(folder) / ARCH_NAME
    if path.stat().st_size > MAX_ARCH_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, but that of a student has at most {MAX_ARCH_BYTES:,}; take the "
            "bundle from its trial again"
        )
    try:
        content = json.loads(path.read_text())
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; take the bundle from its trial again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; take the bundle from its trial again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, but this nas_kd reads {SCHEMA_VERSION}; use the one that wrote it"
        )
    digest = content.pop("digest", None)
    try:
        info = BundleInfo.model_validate(content)
    except ValidationError as error:
        sentences = "; ".join(explain(error, BundleInfo, content))
        raise ValueError(f"{path} is damaged: {sentences}; take the bundle from its trial again") from error
    if digest != digest_of(content):
        raise ValueError(
            f"{path} was changed after it was written: its digest is not that of its content; take the bundle from its "
            "trial again"
        )
    check_claims(path, info)
    return info
