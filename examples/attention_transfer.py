"""A term of your own: attention transfer (Zagoruyko and Komodakis, ICLR 2017), see docs/extending.md.

`objective: {"attention_transfer:AttentionTransfer": {weight: 100, student: stages.1, teacher: layers.1}}`
"""

import torch.nn.functional as F
from pydantic import Field

from nas_kd.objectives import DistillationTerm, TermConfig, resample


class AttentionTransfer(TermConfig):
    """The section of the term in a campaign file: its weight, which all terms have, and its options."""

    power: float = Field(default=2.0, gt=0)
    student: str
    teacher: str

    def build(self, context):
        return AttentionTransferTerm(self, context)


class AttentionTransferTerm(DistillationTerm):
    """Squared distance of two attention maps, each the sum over channels of |activation|^power, scaled to norm 1."""

    def __init__(self, config, context):
        super().__init__(context.name, config.weight)
        self.power, self.ndims = config.power, (4, 5)  # maps of frames or of clips
        self.tap([(config.student, config.teacher)], f"{self.name}.student", f"{self.name}.teacher")

    def attention(self, features, size):
        energy = resample(features.abs().pow(self.power).sum(1, keepdim=True), size)  # (N, 1, T, H, W)
        return F.normalize(energy.flatten(2).mean(1) if energy.ndim == 4 else energy.mean(2).flatten(1), dim=-1)

    def forward(self, student, teacher, batch):
        ((student_module, teacher_module),) = self.pairs
        student_map, teacher_map = student.features[student_module], teacher.features[teacher_module]
        gap = self.attention(student_map, student_map.shape[-2:]) - self.attention(teacher_map, student_map.shape[-2:])
        return {self.name: gap.square().sum(-1).mean()}
