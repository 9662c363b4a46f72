"""Feature distillation (Romero et al., FitNets, ICLR 2015, section 2.2), at the student's resolution."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from nas_kd.objectives.map_term import LeftOut, MapTerm, NoMapsError, module_of_student, pairs_by_scale
from nas_kd.objectives.maps import check_channels, matched_frames, resample
from nas_kd.objectives.term import DistillationTerm, TermConfig, TermContext

_SMALLEST_SQUARE = 1e-16  # of the norm of a vector over the channels; below, the vector counts as zeros


def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two maps of equal channels, each scaled to unit norm over its channels; mean over positions.

    That is 2 − 2 · cosine at each position: 0 for maps that agree but for their size, 2 for unrelated ones. The
    teacher's map is resampled to the student's pixels. Deviation from FitNets: the maps are normalised (as Zagoruyko
    and Komodakis do, ICLR 2017, eq. 2), so that one weight serves teachers whose activations differ in size.

    Args:
        student: (N, C, H_s, W_s) or (N, C, T_s, H_s, W_s), after the adapter.
        teacher: the same with the teacher's pixels and frames.

    Raises:
        ValueError: the maps differ in their channels or in their number of dimensions.
    """
    teacher, student = matched_frames(teacher, student)
    check_channels(student, teacher)
    teacher = resample(teacher, student.shape[-2:])
    # By the cosine: the normalised maps themselves, and their gradients, would take three times as long on a CPU. The
    # square of a normalised vector is 1, or 0 for a vector of zeros; neither has a gradient.
    student = student.contiguous()  # sums over channels are fastest where the pixels of a channel are neighbours
    squares, teacher_squares = student.square().sum(1), teacher.square().sum(1)
    scale = (squares.clamp_min(_SMALLEST_SQUARE) * teacher_squares.clamp_min(_SMALLEST_SQUARE)).rsqrt()
    cosine = (student * teacher).sum(1) * scale
    not_zero = (squares > _SMALLEST_SQUARE).to(cosine) + (teacher_squares > _SMALLEST_SQUARE).to(cosine)
    return (not_zero - 2 * cosine).mean()


class FeatureConfig(TermConfig):
    """Distillation of feature maps, the mean over pairs.

    Attributes:
        pairs: [student module, teacher module] each; without them, the last map of each scale of the one with the last
            map of the same scale of the other, counted from the smallest. A teacher of one scale gives the maps of
            evenly spaced blocks, and where the maps cannot be compared, the term is left out. Distilling every scale is
            what makes a short gate search work: candidates of an edge learn one function soon (Li et al., Blockwisely
            Supervised NAS, CVPR 2020).
    """

    weight: float = Field(default=1.0, ge=0)
    pairs: tuple[tuple[str, str], ...] | None = None

    def build(self, context: TermContext) -> DistillationTerm:
        key = f"{context.name}.pairs"
        if self.pairs:
            pairs = tuple(
                (module_of_student(context.student, student_module), teacher_module)
                for student_module, teacher_module in self.pairs
            )
        else:
            try:
                pairs = pairs_by_scale(context, (key, key))
            except NoMapsError as error:
                return LeftOut(context, self.weight, error.reason)
        return MapTerm(context, self.weight, pairs, (key, key), feature)
