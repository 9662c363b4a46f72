"""Spatiotemporal distillation for saliency (Li, Fu, Zhao and Ge, TIP 2020, arXiv 1904.04992).

Two teachers, one of frames and one of motion, each teach a student of their kind; then the students' trunks move into a
net that fuses them.

1. Each branch learns μ · d(S, T) + (1 − μ) · d(S, G): its teacher's map T is soft, the labels G are hard.
2. The trunks are frozen, and the decoder that reads both learns d(P, G).

Here the student is the fused net from the start. Its trunks get decoders of their own for the first stage, which belong
to the objective and are dropped afterwards. Students of one branch are trained by the first stage alone.

d is the task's distance of maps. Deviation: one training with one schedule of the learning rate instead of two.
"""

from __future__ import annotations

from typing import ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from nas_kd.objectives.term import DistillationTerm, TermConfig, TermContext
from nas_kd.search_spaces.saliency import make_decoder
from nas_kd.taps import ModelOutput, tappable
from nas_kd.tasks import Batch, Saliency

BRANCHES = ("spatial", "temporal")


class SpatiotemporalConfig(TermConfig):
    """Distillation of a spatial and a temporal teacher into the branches of a saliency student.

    Attributes:
        soft_share: μ, the share of the teacher's map; 1 − μ is that of the labels. 0 distils nothing.
        fusion_share: last share of the training, in which the branches are frozen and only the decoder that fuses them
            learns, from the labels. 0 trains branches and decoder together all the time, as a gate search does.
            Students of one branch have no such stage.
        spatial: name of the teacher's module that returns its spatial map; not needed where the data have stored maps.
        temporal: name of the teacher's module that returns its temporal map.
    """

    map_names: ClassVar[tuple[str, ...]] = BRANCHES

    soft_share: float = Field(default=0.5, ge=0, le=1)
    fusion_share: float = Field(default=0.5, ge=0, lt=1)
    spatial: str = "spatial"
    temporal: str = "temporal"

    def check_search(self) -> None:
        if self.fusion_share > 0:
            raise ValueError(
                "objective.spatiotemporal.fusion_share must be 0 in a search, where frozen branches would leave gates "
                f"untrained, but it is {self.fusion_share:g}; set it in the campaign's own objective"
            )

    def build(self, context: TermContext) -> DistillationTerm:
        return SpatiotemporalTerm(self, context)


class SpatiotemporalTerm(DistillationTerm):
    """The first stage, and the frozen trunks of the second.

    Where the decoder that fuses has no stage of its own, it learns from the task's loss. The share of the training in
    which no term counts has to lie within the second stage, or trunks would train again between the two.
    """

    def __init__(self, config: SpatiotemporalConfig, context: TermContext) -> None:
        super().__init__(context.name, config.weight)
        task_weight, finetune_share = context.task_weight, context.finetune_share
        if not isinstance(context.task, Saliency):
            raise ValueError(
                f"spatiotemporal: it distils saliency maps, but the task is {type(context.task).__name__.lower()}; set "
                "spatiotemporal.weight to 0"
            )
        modules = tappable(context.student)
        self.branches = tuple(name for name in BRANCHES if name in modules)
        if not self.branches:
            raise ValueError(
                f"spatiotemporal: the student needs a module 'spatial', 'temporal' or both, but "
                f"{type(modules['']).__name__} has neither; use space saliency"
            )
        self._task, self._fusion_share = context.task, config.fusion_share
        self._trunks = tuple(modules[name] for name in self.branches)  # of the student, not of this module
        self.heads = nn.ModuleDict()
        self.is_fused = len(self.branches) == len(BRANCHES)
        self.replaces_task = not self.is_fused or config.fusion_share > 0
        if not self.replaces_task and task_weight == 0:
            raise ValueError(
                "spatiotemporal.fusion_share is 0, so the decoder that fuses learns from the task's term, but "
                "task.weight is 0; raise one of them"
            )
        if self.is_fused and 0 < config.fusion_share < finetune_share:
            raise ValueError(
                f"finetune_share: {finetune_share:g} is more than spatiotemporal.fusion_share = "
                f"{config.fusion_share:g}, so the first stage of a fused student would end before its branches are "
                "frozen; lower it, or raise fusion_share"
            )
        self.weights = {}
        for branch in self.branches:
            for kind, share in (("soft", config.soft_share), ("hard", 1 - config.soft_share)):
                if share > 0:
                    self.weights[f"spatiotemporal.{branch}_{kind}"] = config.weight * share
        given = context.task.info.map_names if config.soft_share > 0 else self.branches
        self._asked = {branch: str(getattr(config, branch)) for branch in self.branches if branch not in given}
        self.teacher_taps = tuple(self._asked.values())
        self.teacher_keys = {module: f"spatiotemporal.{branch}" for branch, module in self._asked.items()}
        self.ndims = (4,)
        self.needs_teacher = bool(self._asked)
        if self.is_fused:
            self.student_taps = self.branches

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        for branch in self.branches:
            if self.is_fused:
                self.heads[branch] = make_decoder(student.features[branch].shape[1])
            if branch not in self._asked:
                continue
            found = teacher.features[self._asked[branch]]
            if found.shape[1] != 1:
                raise ValueError(
                    f"spatiotemporal.{branch}: a saliency map has the form (N, 1, H, W), but the teacher's module "
                    f"{self._asked[branch]!r} gives {tuple(found.shape)}; name the module that gives the map"
                )

    def is_active(self, progress: float) -> bool:
        return not self.is_fused or progress < 1 - self._fusion_share

    def needs_task_loss(self, progress: float) -> bool:
        """In the second stage, for the decoder that fuses: nothing else reaches it."""
        return self.is_fused and not self.is_active(progress)

    def check_batches(self, batches: int) -> None:
        share = self._fusion_share
        if self.is_fused and share > 0 and self.is_active((batches - 1) / batches):
            raise ValueError(
                f"spatiotemporal.fusion_share: {share:g} of a training of {batches} batches is less than one, so the "
                "decoder that fuses would learn nothing; raise it or the number of epochs, or set it to 0"
            )

    def advance(self, progress: float) -> None:
        if self.is_fused and not self.is_active(progress):
            for trunk in self._trunks:
                trunk.eval().requires_grad_(False)  # BatchNorm keeps its statistics too

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for branch in self.branches:
            student_map = (
                cast(Tensor, self.heads[branch](student.features[branch])) if self.is_fused else student.logits
            )
            soft, hard = f"spatiotemporal.{branch}_soft", f"spatiotemporal.{branch}_hard"
            if soft in self.weights:
                terms[soft] = self._soft(branch, student_map, teacher, batch)
            if hard in self.weights:
                terms[hard] = self._task.loss(student_map, batch)
        return terms

    def _soft(self, branch: str, student_map: Tensor, teacher: ModelOutput | None, batch: Batch) -> Tensor:
        """Distance to the teacher's map of the first frame, (N, 1, H, W).

        Where a crop reaches beyond the frame, a map that comes with the data ends, as labels do; a teacher that is
        asked has seen such pixels.
        """
        if branch not in self._asked:
            return self._task.map_loss(student_map, batch[f"map.{branch}"][:, :1].float(), self._task.known(batch))
        assert teacher is not None
        return self._task.map_loss(student_map, teacher.features[self._asked[branch]])
