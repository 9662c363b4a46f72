"""Mixed clips: each item of a batch is blended with another one (mixup), or gets a rectangle of it (cutmix).

mixup: Zhang et al., arXiv:1710.09412; cutmix: Yun et al., arXiv:1905.04899, one rectangle for all frames of a clip.
A mixed batch says in `mix_partner`, int64 [B], which item of the batch each was mixed with, and in `mix_share`, float32
[B], the share of its own part; losses weigh both labels by it. Shares are drawn for each item.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from nas_kd.settings.strict import Section

PARTNER, SHARE = "mix_partner", "mix_share"


class MixConfig(Section):
    """How the clips of a training are mixed; 0 turns a form off. With both, each batch draws one of them.

    Attributes:
        mixup: α > 0 of the distribution Beta(α, α) of the shares, such as 0.2.
        cutmix: the same, such as 1.
    """

    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)

    @property
    def is_on(self) -> bool:
        """Whether clips are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0


def mix_batch(batch: dict[str, Tensor], config: MixConfig, rng: np.random.Generator) -> dict[str, Tensor]:
    """A batch of mixed clips, or of mixed frame features, for which there is mixup alone.

    Args:
        batch: Augmented, with `clip` or `features`.
        config: How; it is on.
        rng: Decides everything.

    Returns:
        A new dict with `mix_partner` and `mix_share`.
    """
    key = "clip" if "clip" in batch else "features"
    values = batch[key]
    is_cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if is_cut else config.mixup
    partner = torch.from_numpy(rng.permutation(len(values))).to(values.device)
    share = torch.from_numpy(rng.beta(alpha, alpha, len(values))).to(values.device)
    if is_cut:
        mixed, share = cut_and_paste(values, partner, share, torch.from_numpy(rng.random((len(values), 2))))
    else:
        mixed = blend(values, partner, share)
    return {**batch, key: mixed, PARTNER: partner, SHARE: share.float()}


def blend(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """share · own + (1 − share) · partner's, in the type of `values`, rounded where it is of whole numbers.

    Args:
        values: [B, …].
        partner: int64 [B].
        share: [B], of the own part.
    """
    weight = share.float().view(-1, *(1,) * (values.ndim - 1))
    mixed = weight * values.float() + (1 - weight) * values[partner].float()
    return mixed.to(values.dtype) if values.is_floating_point() else mixed.round_().to(values.dtype)


def cut_and_paste(values: Tensor, partner: Tensor, share: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Clips with a rectangle of their partner's, and the share of pixels that are their own.

    The rectangle has the frame's shape and 1 − share of its area, and is cut at the frame's edges.

    Args:
        values: [B, 3, T, H, W].
        partner: int64 [B].
        share: [B], aimed at.
        centre: [B, 2], row and column in shares of the frame.
    """
    inside, area = None, torch.ones(len(values), dtype=torch.float64, device=values.device)
    side = (1 - share).sqrt()
    for dim, place in ((-2, centre[:, 0]), (-1, centre[:, 1])):
        size = values.shape[dim]
        middle, half = place.to(values.device) * size, side * size / 2
        first, last = ((middle + sign * half).round().clamp(0, size)[:, None] for sign in (-1, 1))
        pixels = torch.arange(size, device=values.device)
        chosen = (pixels >= first) & (pixels < last)  # [B, size]
        area = area * chosen.double().mean(1)
        inside = chosen[:, :, None] if inside is None else inside & chosen[:, None, :]
    assert inside is not None, "there are two sides"
    return torch.where(inside[:, None, None], values[partner], values), 1 - area
