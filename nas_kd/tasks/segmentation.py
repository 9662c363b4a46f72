"""One class a pixel of each frame: cross-entropy, mean intersection over union, and how steady it is over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nas_kd.data import DataError, DataInfo, Splits
from nas_kd.data.sample import IGNORE, Sample
from nas_kd.tasks.class_weights import CrossEntropyConfig, balanced_weights, given_weights
from nas_kd.tasks.classification_metrics import confusion_matrix
from nas_kd.tasks.item_scores import ItemScores, Weights
from nas_kd.tasks.occurring import absent_classes, counts_of
from nas_kd.tasks.offsets import Offset, frames_by_offset, over_offsets
from nas_kd.tasks.task import Batch, Task, check_finite_outputs

CONSISTENCY_FRAMES = 8
"""Frames of a window of `temporal_consistency`, as in VC8; all frames where a clip has fewer."""

NAMED_CLASSES = 20
"""Up to this many classes the metrics name the IoU of each."""

_CHUNK = 2**24  # values of upsampled maps held at once: 64 MiB


class SegmentationConfig(CrossEntropyConfig):
    """Options of segmentation, with those of the cross-entropy, by pixels.

    Attributes:
        ohem: whether the loss looks at hard pixels only (online hard example mining).
        ohem_threshold: a pixel is hard where the probability of its true class is below it.
        ohem_min_share: at least this share of a batch's labelled pixels counts, the hardest ones.
    """

    ohem: bool = False
    ohem_threshold: float = Field(default=0.9, gt=0, le=1)
    ohem_min_share: float = Field(default=1 / 16, gt=0, le=1)

    @model_validator(mode="after")
    def _ohem_reads_probabilities(self) -> SegmentationConfig:
        for key in ("label_smoothing", "class_weights"):
            if self.ohem and getattr(self, key):
                raise ValueError(
                    f"ohem chooses pixels by the probability of their class, which {key} changes in the loss; leave "
                    f"out ohem or {key}"
                )
        return self


def pixel_losses(maps: Tensor, mask: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each pixel, 0 where the mask is `IGNORE`.

    Maps are upsampled to the mask bilinearly, with half-pixel centres, a few frames at a time. Where that takes more
    than one step, gradients recompute the upsampled maps instead of keeping them.

    Args:
        maps: float (F, C, h, w), logits of F frames.
        mask: (F, H, W), class of each pixel.
        weights: float32 (C,), factor of each class; None: 1.
        label_smoothing: share of the target that is spread over all classes.

    Returns:
        float32 (F, H, W), in nats.
    """
    slices = list(_chunks(mask, maps.shape[1]))
    if len(slices) == 1:
        return _losses(maps, mask, weights, label_smoothing)
    losses = []
    for s in slices:
        given = (maps[s], mask[s], weights, label_smoothing)
        losses.append(checkpoint(_losses, *given, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(losses)


def hard_pixels(losses: Tensor, known: Tensor, threshold: float, min_share: float) -> Tensor:
    """Which pixels count under OHEM (Shrivastava et al., CVPR 2016, per pixel as released with HRNet).

    All labelled pixels whose true class has a probability below `threshold`; where those are fewer than
    `min_share` of the labelled ones, exactly that many of the hardest.

    Deviations: the least number is a share of the pixels, not a number; ties at its edge are cut, not all kept.

    Args:
        losses: (P,) cross-entropy of each pixel, −log of the probability of its true class.
        known: bool (P,), whether it is labelled.
        threshold: a probability.
        min_share: in (0, 1].

    Returns:
        bool (P,).
    """
    least = max(1, math.ceil(min_share * int(known.sum())))
    hard = (losses > -math.log(threshold)) & known
    if int(hard.sum()) >= least or not bool(known.any()):
        return hard
    hardest = losses.masked_fill(~known, -1.0).topk(least).indices
    return torch.zeros_like(known).index_fill_(0, hardest, True)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class; NaN for a class that is neither in the truth nor in the prediction.

    Args:
        confusion: (C, C) counts, true classes by rows.

    Returns:
        float64 (C,).
    """
    counts = confusion.double()
    right = counts.diagonal()
    return right / (counts.sum(0) + counts.sum(1) - right)


def class_areas(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Pixels of each item by class: predicted right, predicted, and true.

    Args:
        predicted: (N, P) classes.
        mask: (N, P) true classes; `IGNORE` pixels are left out.
        num_classes: C.

    Returns:
        int64 (N, 3, C).
    """
    known, item = mask != IGNORE, torch.arange(len(mask), device=mask.device)[:, None] * num_classes
    counts = []
    for classes, counted in ((mask, known & (predicted == mask)), (predicted, known), (mask, known)):
        place = (item + classes.long())[counted]
        counts.append(torch.bincount(place, minlength=len(mask) * num_classes).view(len(mask), num_classes))
    return torch.stack(counts, 1)


def temporal_consistency(predicted: Tensor, mask: Tensor, window: int) -> list[float]:
    """Video consistency VC_n of each window of n consecutive frames: Miao et al., VSPW, CVPR 2021.

    Of the pixels whose true class is the same in all n frames, the share that is predicted right in all of them. This
    is the paper's formula. Its released evaluation differs: it asks that the prediction be constant, right or wrong
    (with n = 2 that is `label_stability`), and it leaves out the last window of a video.

    Args:
        predicted: (N, T, H, W) classes.
        mask: (N, T, H, W) true classes; pixels that are `IGNORE` in any frame of a window are left out.
        window: n, from 2 to T.

    Returns:
        A share for each window with such pixels.
    """
    right, same = predicted == mask, _unchanged(mask)
    shares = []
    for start in range(mask.shape[1] - window + 1):
        constant = same[:, start : start + window - 1].all(1)
        shares += _shares(right[:, start : start + window].all(1) & constant, constant)
    return shares


def label_stability(predicted: Tensor, mask: Tensor) -> list[float]:
    """How little predictions flicker, for each pair of consecutive frames.

    Of the pixels whose true class stays the same, the share whose predicted class stays the same, right or wrong. It
    is the criterion of VSPW's released evaluation (Miao et al., CVPR 2021) at n = 2.

    Args:
        predicted: (N, T, H, W) classes.
        mask: (N, T, H, W) true classes; pixels that are `IGNORE` in one of two frames are left out.

    Returns:
        A share for each pair with such pixels.
    """
    same = _unchanged(mask).flatten(0, 1)
    return _shares((predicted[:, 1:] == predicted[:, :-1]).flatten(0, 1) & same, same)


class Segmentation(Task):
    """Cross-entropy per pixel; `miou` is the mean intersection over union.

    The mean runs over classes that occur in the truth or the prediction of the whole split, from one confusion matrix
    (one an offset, where there are offsets); `IGNORE` pixels are left out. A class of the data that is in neither is
    no part of the mean.

    Raises:
        ValueError: the data have no masks, or class weights do not fit the classes.
    """

    metric: ClassVar[str] = "miou"
    metrics: ClassVar[tuple[str, ...]] = (
        "miou",
        "pixel_accuracy",
        "cross_entropy",
        "iou_*",
        "temporal_consistency",
        "label_stability",
    )
    percent: ClassVar[tuple[str, ...]] = ("miou", "pixel_accuracy", "iou_*", "temporal_consistency", "label_stability")
    framewise: ClassVar[bool] = True
    hints_read: ClassVar[bool] = True
    keys: ClassVar[tuple[str, ...]] = ("mask",)
    needs: ClassVar[str] = "a labelled pixel"
    options: ClassVar[type[BaseModel]] = SegmentationConfig

    def __init__(self, info: DataInfo, config: SegmentationConfig | None = None) -> None:
        super().__init__(info, config)
        if len(info.mask_names) < 2:
            raise ValueError(
                f"the data have no masks to segment: mask_names must name at least 2 classes, but {info.name!r} names "
                f"{len(info.mask_names)}; give masks and their names, or choose another task"
            )
        self.config = config or SegmentationConfig()
        self._weights = given_weights(self.config.class_weights, self.class_names)
        self._clear()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.info.mask_names

    def is_labelled(self, sample: Sample) -> bool:
        return bool((sample["mask"] != IGNORE).any())

    def check_splits(self, splits: Splits) -> None:
        super().check_splits(splits)
        found = counts_of(splits.retrain.base, "mask", self._pixels).tolist()
        named = [name for name, number in zip(self.class_names, found, strict=True) if number]
        if len(named) == 1:
            raise DataError(
                "data: the training split must hold labelled pixels of at least 2 classes, but all that were looked at "
                f"are {named[0]!r}; check classes and ignore (masks of 0 and 255 need binary: true, not ignore)"
            )

    def prepare(self, splits: Splits) -> None:
        if self.config.class_weights == "balanced":
            self._weights = balanced_weights(counts_of(splits.retrain.base, "mask", self._pixels))

    def hints(self, splits: Splits) -> list[str]:
        return absent_classes(splits, "mask", self._pixels, self.class_names, "labelled pixel")

    def _pixels(self, mask: Tensor) -> Tensor:
        """[C] number of pixels of each class."""
        return torch.bincount(mask.flatten(), minlength=IGNORE + 1)[: self.num_outputs]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over labelled pixels, or over the hard ones; 0 for a batch without a labelled pixel.

        With class weights the mean is weighted, as that of `torch.nn.functional.cross_entropy`.
        """
        maps, mask = self._frames(outputs, batch)
        weights = None if self._weights is None else self._weights.to(mask.device)
        losses = pixel_losses(maps, mask, weights, self.config.label_smoothing).flatten()
        known = (mask != IGNORE).flatten()
        if weights is not None:
            of_pixels = weights[mask.flatten().long().clamp_max(len(weights) - 1)] * known
            total = of_pixels.sum()
            return losses.sum() / torch.where(total > 0, total, 1.0)
        if self.config.ohem:
            known = hard_pixels(losses.detach(), known, self.config.ohem_threshold, self.config.ohem_min_share)
        return (losses * known).sum() / known.sum().clamp_min(1)

    @torch.no_grad()
    def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
        check_finite_outputs(outputs)
        maps, mask = self._frames(outputs, batch)
        clips, frames = outputs.shape[:2]
        predicted = torch.empty_like(mask)
        for s in _chunks(mask, self.num_outputs):
            logits = _upsample(maps[s], mask[s])
            predicted[s] = logits.argmax(1).to(mask.dtype)
            losses = F.cross_entropy(logits, mask[s].long(), ignore_index=IGNORE, reduction="sum")
            self._loss_sum += float(losses)
        predicted, mask = (x.view(clips, frames, *x.shape[1:]) for x in (predicted, mask))
        for offset, chosen in frames_by_offset(offsets, frames).items():
            matrix = confusion_matrix(predicted[:, chosen].long(), mask[:, chosen].long(), self.num_outputs)
            self._confusion[offset] = self._confusion.get(offset, 0) + matrix.cpu()
            areas = class_areas(predicted[:, chosen].flatten(1), mask[:, chosen].flatten(1), self.num_outputs)
            self._areas.setdefault(offset, []).append(areas.cpu())
        if frames > 1:
            self._consistency += temporal_consistency(predicted, mask, min(CONSISTENCY_FRAMES, frames))
            self._stability += label_stability(predicted, mask)

    def item_scores(self) -> ItemScores:
        areas = [torch.cat(parts).double().numpy() for parts in self._areas.values()]
        areas = [each for each in areas if each[:, 2].any()]  # offsets with a labelled pixel
        true = [each[:, 2].sum(0) for each in areas]
        # A constant answer gets the IoU total(c) / all pixels in its class and 0 in the others that occur.
        majority = [float(counts.max() / counts.sum() / np.count_nonzero(counts)) for counts in true]

        def resample(weights: Weights) -> Weights:
            values = []
            for each in areas:
                right, predicted, wanted = np.tensordot(weights, each, 1).transpose(1, 0, 2)
                union = predicted + wanted - right
                occurs = union > 0
                iou = np.divide(right, union, out=np.zeros_like(right), where=occurs)
                number = occurs.sum(1)
                mean = np.divide(iou.sum(1), number, out=np.full(len(iou), np.nan), where=number > 0)
                values.append(mean)
            mean_of_offsets: Weights = np.mean(values, axis=0)
            return mean_of_offsets

        num_items = sum(len(part) for part in next(iter(self._areas.values()), []))
        constant = sum(majority) / len(majority) if majority else None
        return ItemScores(num_items, resample, majority=constant, span=(0, 1))

    def compute(self) -> dict[str, float]:
        """The metrics since the last call.

        `miou`, `miou@k`; `pixel_accuracy` and `cross_entropy` over all labelled pixels; `iou_<class>` over all frames,
        for up to 20 classes, without those that do not occur; `temporal_consistency` and `label_stability`, means over
        windows and pairs of frames, where clips have more than one labelled frame.
        """
        matrices = {offset: matrix for offset, matrix in self._confusion.items() if bool(matrix.any())}
        if not matrices:
            raise ValueError("metrics need at least one labelled pixel, but the split has none")
        values = over_offsets("miou", {offset: float(class_iou(m).nanmean()) for offset, m in matrices.items()})
        whole = torch.stack(list(matrices.values())).sum(0)
        values["pixel_accuracy"] = float(whole.diagonal().sum() / whole.sum())
        values["cross_entropy"] = self._loss_sum / int(whole.sum())
        if self.num_outputs <= NAMED_CLASSES:
            named = zip(self.info.mask_names, class_iou(whole).tolist(), strict=True)
            values |= {f"iou_{name}": iou for name, iou in named if not math.isnan(iou)}
        for name, shares in (("temporal_consistency", self._consistency), ("label_stability", self._stability)):
            if shares:
                values[name] = sum(shares) / len(shares)
        self._clear()
        return values

    def _clear(self) -> None:
        self._confusion: dict[Offset, Tensor] = {}
        self._areas: dict[Offset, list[Tensor]] = {}  # of each item: (N, 3, C)
        self._loss_sum = 0.0
        self._consistency: list[float] = []
        self._stability: list[float] = []

    def _frames(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Maps (N·T, C, h, w) and masks (N·T, H, W)."""
        mask = batch["mask"]
        if outputs.ndim != 5 or outputs.shape[:3] != (*mask.shape[:2], self.num_outputs):
            wanted = (*mask.shape[:2], self.num_outputs, "h", "w")
            raise ValueError(
                f"segmentation needs maps of shape {wanted}, a channel for each of {', '.join(self.info.mask_names)}, "
                f"but the model gives {tuple(outputs.shape)}"
            )
        return outputs.flatten(0, 1), mask.flatten(0, 1).to(outputs.device)


def _upsample(maps: Tensor, mask: Tensor) -> Tensor:
    return F.interpolate(maps.float(), size=mask.shape[-2:], mode="bilinear", align_corners=False)


def _losses(maps: Tensor, mask: Tensor, weights: Tensor | None, label_smoothing: float) -> Tensor:
    return F.cross_entropy(
        _upsample(maps, mask),
        mask.long(),
        weights,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def _chunks(mask: Tensor, channels: int) -> Iterator[slice]:
    """Slices of as many frames as fit, at least one."""
    step = max(1, _CHUNK // (channels * mask.shape[-2] * mask.shape[-1]))
    return (slice(start, start + step) for start in range(0, len(mask), step))


def _unchanged(mask: Tensor) -> Tensor:
    """(N, T − 1, H, W): labelled, and of the same class in a frame and the next."""
    return (mask[:, 1:] == mask[:, :-1]) & (mask[:, 1:] != IGNORE)


def _shares(chosen: Tensor, of: Tensor) -> list[float]:
    """`chosen` in shares of `of`, both bool (K, H, W), for each of K where there is any."""
    parts, wholes = chosen.sum((1, 2)).tolist(), of.sum((1, 2)).tolist()
    return [part / whole for part, whole in zip(parts, wholes, strict=True) if whole]
