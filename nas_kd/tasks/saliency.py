"""Task saliency: a map of where people look in the first frame of a clip, from that frame and those that follow.

The ground truth is a mask of the object that draws the eyes, or the points of eyes that were tracked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from nas_kd.data import DataError, DataInfo, Sample, Splits
from nas_kd.data.sample import IGNORE
from nas_kd.tasks.item_scores import ItemScores, mean_of_items
from nas_kd.tasks.saliency_metrics import auc_judd, auc_shuffled, correlation, nss, similarity
from nas_kd.tasks.task import Batch, Outputs, Task, check_finite_outputs

SIGMA_SHARE = 1 / 30
"""Default spread of a fixation point in shares of the frame's width: about a degree of visual angle, which is 35 of
1024 pixels in the MIT saliency benchmark."""


_NO_MAPS = {"feature": {"weight": 0.0}, "response": {"weight": 0.0}}


class SaliencyConfig(BaseModel):
    """Options of saliency.

    Attributes:
        ground_truth: what mask values above 0 are: `mask`, an object all of whose pixels are looked at, or `fixations`,
            points, blurred to a density.
        sigma: standard deviation of that blur in pixels of the data, a thirtieth of their width by default; for
            `fixations` only.
        others: whose fixations are the negatives of the shuffled AUC: those of all other `frames`, or those of all
            other `sequences`, which needs data that say which video a clip is of. In videos the former holds a frame
            against its neighbours, which look alike.
        loss: distance of two maps: `mse`, the mean of squared differences, or `l1`, the mean of absolute ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ground_truth: Literal["mask", "fixations"] = "mask"
    sigma: float | None = Field(default=None, gt=0)
    loss: Literal["mse", "l1"] = "mse"
    others: Literal["frames", "sequences"] = "frames"

    @model_validator(mode="after")
    def _sigma_has_points(self) -> SaliencyConfig:
        if self.sigma is not None and self.ground_truth == "mask":
            raise ValueError(
                f"sigma blurs fixation points, but ground_truth is mask and sigma is {self.sigma:g}; set ground_truth: "
                "fixations, or leave sigma out"
            )
        return self


class Saliency(Task):
    """Distance to the density of fixations; `nss` is the normalised scanpath saliency.

    Models map clips (N, 3, T, H, W) to maps (N, 1, h, w) of their first frames, of any h and w and without a last
    nonlinearity. The ground truth is the first frame of `mask`: any class but the first is fixated, `IGNORE` pixels are
    in no loss and no metric.

    Raises:
        ValueError: the data have no masks, or theirs are points and not what `ground_truth` says, or the reverse.
    """

    metric: ClassVar[str] = "nss"
    metrics: ClassVar[tuple[str, ...]] = ("nss", "auc_judd", "auc_shuffled", "sim", "cc", "mae", "scored_share")
    dense: ClassVar[bool] = True
    outputs: ClassVar[Outputs] = "other"
    keys: ClassVar[tuple[str, ...]] = ("mask",)
    needs: ClassVar[str] = "a fixated pixel (a mask value above 0) in its first frame"
    options: ClassVar[type[BaseModel]] = SaliencyConfig
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "teacher": {"model": "saliency"},
        "space": {"name": "saliency"},
        "budget": {"max_flops": ["6M", "10M", "16M"]},
        "objective": {**_NO_MAPS, "spatiotemporal": {"weight": 1.0}},
        "search": {"objective": {**_NO_MAPS, "spatiotemporal": {"weight": 1.0, "fusion_share": 0.0}}},
    }

    def __init__(self, info: DataInfo, config: SaliencyConfig | None = None) -> None:
        super().__init__(info, config)
        if len(info.mask_names) < 2:
            raise ValueError(
                "the data have no masks that say what is looked at: mask_names must name at least 2 classes, but "
                f"{info.name!r} names {len(info.mask_names)}; give masks and their names, or choose another task"
            )
        self.config = config or SaliencyConfig()
        if info.points and self.config.ground_truth == "mask":
            raise ValueError(
                f"task_options.ground_truth: the masks of {info.name!r} are fixation points (data.points), of single "
                "pixels, but mask takes them for whole objects; set ground_truth: fixations"
            )
        if not info.points and self.config.ground_truth == "fixations":
            raise ValueError(
                f"task_options.ground_truth: fixations blurs single points, but the masks of {info.name!r} are areas; "
                "set ground_truth: mask, or, if each pixel above 0 is a fixation, data.points: true (a function of "
                "your own returns points: True)"
            )
        if self.config.others == "sequences":
            self.keys = ("mask", "sequence")  # type: ignore[misc]  # of this instance alone
        self.sigma = self.config.sigma or SIGMA_SHARE * info.width
        self._clear()

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("saliency",)

    def is_labelled(self, sample: Sample) -> bool:
        return bool(_fixated(sample["mask"][0]).any())

    def check_splits(self, splits: Splits) -> None:
        if "sequence" in self.keys and not all(
            "sequence" in part[0] for part in (splits.retrain, splits.val, splits.test)
        ):
            raise DataError(
                f"task_options.others: sequences needs data that say which video a clip is of, as those of source "
                f"sequences do, but those of {splits.info.name!r} do not; set others: frames"
            )
        super().check_splits(splits)

    def density(self, mask: Tensor) -> Tensor:
        """How much each pixel is looked at, in [0, 1].

        For `mask`, 1 where a pixel is fixated. For `fixations`, the sum of a Gaussian around each point, not cut off
        anywhere, divided by its maximum; 0 without points.

        Args:
            mask: uint8 (N, H, W), pixels above 0 are fixated.

        Returns:
            float32 (N, 1, H, W).
        """
        points = _fixated(mask)[:, None].float()
        if self.config.ground_truth == "mask":
            return points
        down, across = (_gaussian(size, self.sigma, points) for size in points.shape[-2:])
        blurred = down @ points @ across
        highest = blurred.amax((-2, -1), keepdim=True)
        return blurred / highest.where(highest > 0, 1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Distance of the maps to the density, both at the maps' size: S4's ‖P − G‖ as a mean over labelled pixels.

        The density is averaged over the area of each pixel of a map (the part of it that is labelled, by which the
        pixel counts). 0 for a batch without a labelled pixel.
        """
        mask = self._mask(outputs, batch)
        known = (mask != IGNORE)[:, None].float()
        size = outputs.shape[-2:]
        share = F.interpolate(known, size=size, mode="area")
        target = F.interpolate(self.density(mask) * known, size=size, mode="area")
        return self._mean_over(share, outputs, target)

    def known(self, batch: Batch) -> Tensor:
        """Which pixels of the first frames have a label, and a map that comes with the data: bool (N, 1, H, W)."""
        return batch["mask"][:, :1] != IGNORE

    def map_loss(self, outputs: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """Distance of maps to soft ones, such as a teacher's.

        Args:
            outputs: (N, 1, h, w).
            target: (N, 1, h', w'); brought to h × w by areas where neither side grows, else bilinearly.
            known: bool (N, 1, h', w'), the pixels that count, by as much of them as a pixel of the outputs holds; all
                of them without it.

        Returns:
            A scalar, with the distance of `loss`; 0 where no pixel counts.

        Raises:
            ValueError: the shapes do not fit.
        """
        if outputs.ndim != 4 or target.ndim != 4 or outputs.shape[:2] != target.shape[:2]:
            raise ValueError(
                f"maps and targets must both be (N, 1, h, w) with equal N, but the maps are {tuple(outputs.shape)} and "
                f"the targets {tuple(target.shape)}; give one target map for each item of the batch"
            )
        size, goal = outputs.shape[-2:], target.float()
        if known is None:
            return self._distances(outputs.float(), _resized(goal, size)).mean()
        counted = known.to(goal)
        return self._mean_over(_resized(counted, size), outputs, _resized(goal * counted, size))

    @torch.no_grad()
    def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
        check_finite_outputs(outputs)
        # The shuffled AUC needs the fixations of the whole split, so maps wait for `compute` as small as they come.
        mask = self._mask(outputs, batch)
        self._maps.append(outputs.float().cpu())
        self._masks.append(mask.cpu().contiguous())  # a view would keep the other frames of its batch
        if self.config.others == "sequences":
            self._sequences += batch["sequence"].tolist()

    @torch.no_grad()
    def item_scores(self) -> ItemScores:
        """A map without relation to the fixations has an NSS of 0."""
        values: list[float] = []
        counted: list[bool] = []
        for maps, masks in zip(self._maps, self._masks, strict=True):
            raised = _bilinear(maps, masks.shape[-2:])[:, 0]
            for found, points, known in zip(raised, _fixated(masks), masks != IGNORE, strict=True):
                counted.append(bool(points.any()))
                values.append(nss(found[known], points[known]) if counted[-1] else 0.0)
        return ItemScores(len(values), mean_of_items(values, counted), chance=0.0)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics since the last call, of maps upsampled to the frames bilinearly.

        `nss`, `auc_judd`, `auc_shuffled`, `sim` and `cc` are means over frames with a fixated pixel, whose share is
        `scored_share`. Negatives of `auc_shuffled` are the fixated pixels of all other frames that were added, or of
        those of other sequences; a frame without such is no part of it, and it is missing where no frame has any. `mae`
        is the mean absolute difference to the density over the labelled pixels of all frames, of maps cut to [0, 1].
        """
        parts: dict[str, list[float]] = {}
        error, pixels, frames = 0.0, 0, 0
        fixated = [_fixated(masks) for masks in self._masks]
        total = sum((points.sum(0) for points in fixated), torch.zeros((), dtype=torch.int64))
        of_sequence: dict[int, Tensor] = {}
        for sequence, points in zip(self._sequences, (frame for batch in fixated for frame in batch), strict=False):
            of_sequence[sequence] = of_sequence.get(sequence, 0) + points.long()
        for maps, masks, points in zip(self._maps, self._masks, fixated, strict=True):
            raised, densities = _bilinear(maps, masks.shape[-2:])[:, 0], self.density(masks)[:, 0]
            for n, labelled in enumerate(masks != IGNORE):
                known = ... if bool(labelled.all()) else labelled  # picking pixels costs as much as a metric
                found, truth, here = raised[n][known], densities[n][known], points[n][known]
                error += float((found.clamp(0, 1) - truth).abs().sum(dtype=torch.float64))
                pixels += found.numel()
                if bool(here.any()):
                    own = of_sequence[self._sequences[frames + n]][known] if of_sequence else here.long()
                    for name, value in _scores(found, truth, here, total[known] - own).items():
                        parts.setdefault(name, []).append(value)
            frames += len(masks)
        if not parts:
            raise ValueError("metrics need at least one fixated pixel, but the split has none")
        self._clear()
        means = {name: sum(values) / len(values) for name, values in parts.items()}
        return {**means, "mae": error / pixels, "scored_share": len(parts["nss"]) / frames}

    def _clear(self) -> None:
        self._maps: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._sequences: list[int] = []

    def _mean_over(self, share: Tensor, outputs: Tensor, part: Tensor) -> Tensor:
        """Mean distance over pixels of which a share is known, from the known part of their target."""
        whole = share.sum()
        distances = self._distances(outputs.float(), part / share.where(share > 0, 1))
        return (distances * share).sum() / whole.where(whole > 0, 1)

    def _distances(self, outputs: Tensor, target: Tensor) -> Tensor:
        difference = outputs - target
        return difference.square() if self.config.loss == "mse" else difference.abs()

    def _mask(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Ground truth (N, H, W) of the first frames."""
        mask = batch["mask"][:, 0].to(outputs.device)
        if outputs.ndim != 4 or outputs.shape[:2] != (len(mask), 1):
            raise ValueError(
                f"saliency needs one map a clip, of shape {(len(mask), 1, 'h', 'w')}, but the model gives "
                f"{tuple(outputs.shape)}"
            )
        return mask


def _fixated(mask: Tensor) -> Tensor:
    return (mask > 0) & (mask != IGNORE)


def _scores(saliency: Tensor, density: Tensor, fixations: Tensor, other: Tensor) -> dict[str, float]:
    """The metrics of one frame, of its labelled pixels."""
    scores = {
        "nss": nss(saliency, fixations),
        "auc_judd": auc_judd(saliency, fixations),
        "sim": similarity(saliency, density),
        "cc": correlation(saliency, density),
    }
    return {**scores, "auc_shuffled": auc_shuffled(saliency, fixations, other)} if bool(other.any()) else scores


def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    """By areas where neither side grows, else bilinearly."""
    if maps.shape[-2:] == size:
        return maps
    shrinks = size[0] <= maps.shape[-2] and size[1] <= maps.shape[-1]
    return F.interpolate(maps, size=size, mode="area") if shrinks else _bilinear(maps, size)


def _bilinear(maps: Tensor, size: torch.Size) -> Tensor:
    """With half-pixel centres."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """(size, size) weights of a blur; their scale cancels out."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    return (-((place[:, None] - place) ** 2) / (2 * sigma**2)).exp()
