"""The `objective` section of a campaign file: its terms, each with a weight."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nas_kd.objectives.delta import Normalize, Reference
from nas_kd.strict import Section


class _Term(Section):
    weight: float = Field(default=0.0, ge=0)


class TaskTerm(_Term):
    """The task's own loss on the labels."""

    weight: float = Field(default=1.0, ge=0)


class ResponseTerm(_Term):
    """Distillation of the teacher's logits."""

    kd_temperature: float = Field(default=4.0, gt=0)


class FeatureTerm(_Term):
    """Distillation of feature maps, the mean over pairs.

    Attributes:
        pairs: [student module, teacher module] each; without them, the last map of each scale of the one with the last
            map of the same scale of the other, counted from the smallest. Distilling every scale is what makes a short
            gate search work: candidates of an edge learn one function soon (Li et al., Blockwisely Supervised NAS,
            CVPR 2020).
    """

    weight: float = Field(default=1.0, ge=0)
    pairs: tuple[tuple[str, str], ...] | None = None


class CrossResolutionTerm(_Term):
    """Distillation of one feature map at the teacher's resolution; the paper's weight is 100, of its `logits` form 200.

    Attributes:
        form: `maps` compares the maps themselves (CNNs), `logits` what both classifiers say at every position
            (transformers).
        kd_temperature: of the `logits` form.
        student: name of the module that gives the map; the last map by default.
        teacher: likewise.
        student_classifier: name of the linear layer that reads the map, for the `logits` form; the last one with as
            many outputs as the task has classes by default.
        teacher_classifier: likewise.
        teacher_norm: `running` keeps the teacher's BatchNorm as in evaluation; `batch` gives it the statistics of the
            batch, as the released code does, and leaves its buffers as they are. Such answers are never cached.
    """

    form: Literal["maps", "logits"] = "maps"
    kd_temperature: float = Field(default=2.0, gt=0)
    student: str | None = None
    teacher: str | None = None
    student_classifier: str | None = None
    teacher_classifier: str | None = None
    teacher_norm: Literal["running", "batch"] = "running"


class DeltaTerm(_Term):
    """Delta distillation of every delta layer, for students of `delta_blocks`.

    Attributes:
        normalize: `layer` measures each layer's error in units of its own change, `overall` all of them in units of
            their mean change, `none` not at all.
        active_share: share of the training in which the term counts; later the task decides alone (a third in the
            released code).
        teacher_lr_scale: learning rate of the layers that were the teacher's, in shares of that of the students; 0
            keeps them frozen. They learn in the student's copy: the teacher itself never changes.
        reference: `keyframe` compares the changes since the key frame, `previous` those since the frame before, which
            asks for the right motion and forgives an offset that stays. What a student computes is the same.
    """

    normalize: Normalize = "layer"
    active_share: float = Field(default=1 / 3, gt=0, le=1)
    teacher_lr_scale: float = Field(default=0.0, ge=0, le=1)
    reference: Reference = "keyframe"


class FewerFramesTerm(_Term):
    """Distillation from a teacher that sees all frames to a student that sees few of them.

    Attributes:
        representation: weight of the squared distance of the two encodings; 0 leaves it out.
        prediction: weight of the distance of the two class vectors; 0 leaves it out.
        distance: of class vectors, `squared` or `kl`.
        training: `serial` asks the finished teacher; `parallel` trains one of its kind beside the student, on the
            labels alone.
        student: name of the module that gives the encoding.
        teacher: likewise.
    """

    representation: float = Field(default=1.0, ge=0)
    prediction: float = Field(default=1.0, ge=0)
    distance: Literal["squared", "kl"] = "squared"
    training: Literal["serial", "parallel"] = "serial"
    student: str = "encoder"
    teacher: str = "encoder"


class SpatiotemporalTerm(_Term):
    """Distillation of a spatial and a temporal teacher into the streams of a saliency student.

    Attributes:
        soft_share: μ, the share of the teacher's map; 1 − μ is that of the labels. 0 distils nothing.
        fusion_share: last share of the training, in which the streams are frozen and only the decoder that fuses them
            learns, from the labels. 0 trains streams and decoder together all the time, as a gate search does. Students
            of one stream have no such stage.
        spatial: name of the module of the teacher that gives its spatial map; not needed where the data bring maps.
        temporal: likewise.
    """

    soft_share: float = Field(default=0.5, ge=0, le=1)
    fusion_share: float = Field(default=0.5, ge=0, lt=1)
    spatial: str = "spatial"
    temporal: str = "temporal"


class ObjectiveConfig(Section):
    """Terms of the loss, each with its weight; a weight of 0 leaves the term out.

    Attributes:
        finetune_share: last share of the training in which the task's loss counts alone (with weight 1 where it has
            none).
    """

    task: TaskTerm = TaskTerm()
    response: ResponseTerm = ResponseTerm()
    feature: FeatureTerm = FeatureTerm()
    cross_resolution: CrossResolutionTerm = CrossResolutionTerm()
    delta: DeltaTerm = DeltaTerm()
    fewer_frames: FewerFramesTerm = FewerFramesTerm()
    spatiotemporal: SpatiotemporalTerm = SpatiotemporalTerm()
    finetune_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _some(self) -> ObjectiveConfig:
        few = self.fewer_frames  # whose own terms may both be left out
        few_weight = few.weight * max(few.representation, few.prediction)
        weights = {**self.weights, "task": self.task.weight, "fewer_frames": few_weight}
        if not any(weights.values()):
            why = "all are 0"
            if few.weight > 0:
                why = "fewer_frames has none with both its representation and its prediction at 0, and all others are 0"
            raise ValueError(f"at least one term must have a weight above 0, but {why}")
        if self.delta.active_share < 1 and not any(weight for name, weight in weights.items() if name != "delta"):
            raise ValueError(
                f"delta.active_share must be 1 where delta is the only term, but it is {self.delta.active_share:.3g}"
            )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every term that distils."""
        names = (name for name in type(self).model_fields if name not in ("task", "finetune_share"))
        return {name: getattr(self, name).weight for name in names}

    @property
    def distils(self) -> bool:
        """Whether any term needs the teacher."""
        return any(weight > 0 for weight in self.weights.values())

    @property
    def trains_teacher(self) -> bool:
        """Whether a teacher of its own learns beside the student."""
        return self.fewer_frames.weight > 0 and self.fewer_frames.training == "parallel"

    @property
    def asks_live(self) -> bool:
        """Whether the teacher's answers depend on more than the clip, so that they cannot be cached."""
        in_batch = self.cross_resolution.weight > 0 and self.cross_resolution.teacher_norm == "batch"
        return in_batch or self.trains_teacher
