"""Changes of brightness, contrast, saturation and hue, as one affine map of colours for each clip.

With the factors b, c and s, the angle h, the pixel x in RGB and the grey g(x) of Rec. 601:

    x₁ = b x,   x₂ = c x₁ + (1 − c) mean g(x₁),   x₃ = s x₂ + (1 − s) g(x₂),   x₄ = x₃ with its hue turned by h.

The mean is over all pixels of all frames of the clip, so that contrast does not flicker. The hue turns in the plane of
I and Q of YIQ, which keeps grey; this is linear, as in NVIDIA DALI's `color_twist`. Differences from torchvision's
`ColorJitter`: the order is fixed, values are cut to 0..255 once, at the end, and the hue does not turn in HSV.
"""

from __future__ import annotations

from math import tau

import torch
from torch import Tensor

from nas_kd.data.augment_config import ColorConfig

GREY = (0.299, 0.587, 0.114)
_YIQ = (GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def jitter(clip: Tensor, config: ColorConfig, draws: Tensor) -> Tensor:
    """Clips with other colours.

    Args:
        clip: uint8 [B, 3, T, H, W].
        config: How much.
        draws: [B, 4], uniform in [0, 1): of brightness, contrast, saturation and hue.
    """
    around = 2 * draws - 1
    brightness = 1 + config.brightness * around[:, 0]
    contrast = 1 + config.contrast * around[:, 1]
    saturation = 1 + config.saturation * around[:, 2]
    return change_colors(clip, brightness, contrast, saturation, config.hue * around[:, 3])


def change_colors(clip: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Clips with stated changes of their colours.

    Args:
        clip: uint8 [B, 3, T, H, W].
        brightness: [B], factors.
        contrast: [B], factors.
        saturation: [B], factors.
        hue: [B], shares of a turn.
    """
    flat = clip.flatten(2).float()
    device, grey = flat.device, torch.tensor(GREY, device=flat.device)
    scale = (brightness * contrast).to(device).float()[:, None, None]
    colors = _turned(hue.to(device)) @ _saturated(saturation.to(device), grey)
    mean_grey = flat.mean(2) @ grey
    offset = (1 - contrast.to(device)).float() * brightness.to(device).float() * mean_grey
    changed = torch.baddbmm(offset[:, None, None], scale * colors.float(), flat)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view(clip.shape)


def _saturated(factor: Tensor, grey: Tensor) -> Tensor:
    """[B, 3, 3]."""
    factor = factor.double()[:, None, None]
    return factor * torch.eye(3, device=factor.device) + (1 - factor) * grey.double().expand(3, 3)


def _turned(hue: Tensor) -> Tensor:
    """[B, 3, 3]."""
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64, device=hue.device)
    angle = tau * hue.double()
    turn = torch.zeros(len(hue), 3, 3, dtype=torch.float64, device=hue.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 2, 1] = angle.sin()
    turn[:, 1, 2] = -angle.sin()
    back: Tensor = torch.linalg.inv(to_yiq)
    return back @ turn @ to_yiq
