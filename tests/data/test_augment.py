"""Augmentations that a section asks for: colours and windows against hand computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from nas_kd.data import Augment, AugmentConfig, ClipLoader, DataError, MemoryDataset, Views, augment_batch
from nas_kd.data.augment import NUM_DRAWS, NUM_MORE_DRAWS
from nas_kd.data.color import change_colors

WIDTH = NUM_DRAWS + NUM_MORE_DRAWS


def draws_with(*rows: dict[int, float]) -> Tensor:
    draws = torch.full((len(rows), WIDTH), 0.5)
    for draw, row in zip(draws, rows, strict=True):
        for column, value in row.items():
            draw[column] = value
    return draws


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def colors_by_hand(clip: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """One step after the other, in double precision, pixel by pixel; clip is (3, T, H, W)."""

    def grey(values: Tensor) -> Tensor:
        return 0.299 * values[0] + 0.587 * values[1] + 0.114 * values[2]

    values = brightness * clip.double()
    values = contrast * values + (1 - contrast) * grey(values).mean()
    return saturation * values + (1 - saturation) * grey(values)


def test_colors_are_those_of_the_formula_with_one_mean_for_all_frames() -> None:
    clip = clips(2, 3, 2, 4, 5)
    factors = ((0.6, 1.3, 0.4), (1.2, 0.5, 1.7))
    columns = [torch.tensor(column) for column in zip(*factors, strict=True)]
    changed = change_colors(clip, columns[0], columns[1], columns[2], torch.zeros(2))
    for one, before, factor in zip(changed, clip, factors, strict=True):
        expected = colors_by_hand(before, *factor).clamp(0, 255)
        assert (one.double() - expected).abs().max() <= 0.51
    dark = torch.tensor([0, 100, 200], dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(1, 3, 1, 2, 2)
    one = torch.ones(1)
    assert change_colors(dark, one, one, 0 * one, 0 * one)[0, :, 0, 0, 0].tolist() == [82, 82, 82]  # 58.7 + 22.8
    # Half a turn mirrors the distances from grey: 2 · 81.5 − x.
    assert change_colors(dark, one, one, one, one / 2)[0, :, 0, 0, 0].tolist() == [163, 63, 0]
    grey = clips(1, 1, 2, 3, 3).expand(1, 3, 2, 3, 3)
    assert torch.equal(change_colors(grey, one, one, 1.5 * one, 0.21 * one), grey)


def test_draws_become_factors() -> None:
    batch = {"clip": torch.full((2, 3, 1, 1, 1), 100, dtype=torch.uint8), "label": torch.zeros(2)}
    how = AugmentConfig(color={"brightness": 0.4})
    shown = augment_batch(batch, how, draws_with({5: 0.0}, {5: 0.75}))
    assert shown["clip"][:, 0, 0, 0, 0].tolist() == [60, 120]


def test_a_resized_crop_is_the_scaled_window_and_targets_follow() -> None:
    clip = clips(1, 3, 2, 8, 12)
    boxes = torch.tensor([7.0, 2.0, 10.0, 3.0, 1.0]).expand(1, 2, 1, 5)
    batch = {
        "clip": clip,
        "mask": clip[:, 0] % 3,
        "map.seen": clip[:, 0] / 255,
        "boxes": boxes,
        "label": torch.zeros(1),
    }
    how = AugmentConfig(resized_crop={"area": [0.25, 0.25], "ratio": [1, 1]})
    shown = augment_batch(batch, how, draws_with({2: 0.0, 3: 1.0}))  # the upper right quarter, twice as large
    whole = F.interpolate(clip.float().flatten(0, 1), scale_factor=2, mode="bilinear").view(1, 3, 2, 16, 24)
    assert (shown["clip"].float() - whole[..., :8, 12:]).abs().max() <= 0.51
    assert torch.equal(shown["mask"], batch["mask"][..., :4, 6:].repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert torch.allclose(shown["map.seen"], whole[:, 0, :, :8, 12:] / 255, atol=1e-6)
    assert shown["boxes"][0, 1, 0].tolist() == [2, 4, 8, 6, 1]
    # Half of the area, twice as wide as high: the whole width, and half of the height from its middle.
    wide = AugmentConfig(resized_crop={"area": [0.5, 0.5], "ratio": [2, 2]})
    shown = augment_batch(batch, wide, draws_with({2: 0.5}))
    whole = F.interpolate(clip.float().flatten(0, 1), size=(16, 12), mode="bilinear").view(1, 3, 2, 16, 12)
    assert (shown["clip"].float() - whole[..., 4:12, :]).abs().max() <= 0.51


def numbered(frames: int, height: int, width: int) -> dict[str, Tensor]:
    """A clip whose pixels are 16 · frame in red, the row in green and the column in blue, with a mask and a box."""
    clip = torch.zeros(1, 3, frames, height, width, dtype=torch.uint8)
    clip[:, 0] = 16 * torch.arange(frames, dtype=torch.uint8)[:, None, None]
    clip[:, 1] = torch.arange(height, dtype=torch.uint8)[:, None]
    clip[:, 2] = torch.arange(width, dtype=torch.uint8)
    box = torch.tensor([1.0, 1.0, 5.0, 6.0, 0.0]).expand(1, frames, 1, 5)
    return {"clip": clip, "mask": clip[:, 1] + 0, "boxes": box, "label": torch.zeros(1, dtype=torch.int64)}


def test_of_what_is_stored_nets_see_uniform_frames_and_the_middle() -> None:
    shown = augment_batch(numbered(8, 10, 12), "none", torch.empty(1, 0), (4, 6, 8))
    assert (shown["clip"][0, 0, :, 0, 0] / 16).tolist() == [1, 3, 5, 7]
    assert shown["clip"][0, 1, 0, :, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert shown["clip"][0, 2, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert shown["mask"][0, 0, :, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert shown["boxes"][0, :, 0].tolist() == [[0, 0, 3, 4, 0]] * 4
    flipped = augment_batch(numbered(8, 10, 12), "flip", torch.zeros(1, NUM_DRAWS), (4, 6, 8))
    assert torch.equal(flipped["clip"], shown["clip"].flip(-1))


def test_a_window_in_time_has_the_frames_of_the_formula() -> None:
    how = AugmentConfig(temporal={"window": [0.5, 1.0]})
    batch = {key: value.repeat(3, *[1] * (value.ndim - 1)) for key, value in numbered(16, 4, 4).items()}
    draws = draws_with({9: 0.0, 10: 0.0}, {9: 0.0, 10: 0.999}, {9: 1.0, 10: 0.3})
    shown = augment_batch(batch, how, draws, (4, 4, 4))
    # Windows of 8, 8 and 16 of 16 frames that begin at 0, 7.99 and 0.
    frames = [[1, 3, 5, 7], [8, 10, 12, 14], [2, 6, 10, 14]]
    assert (shown["clip"][:, 0, :, 0, 0] / 16).tolist() == frames
    assert shown["mask"].shape == (3, 4, 4, 4)
    assert shown["boxes"].shape == (3, 4, 1, 5)


def test_windows_of_a_larger_stored_frame_are_scaled_to_what_nets_see() -> None:
    clip = clips(1, 3, 1, 16, 24)
    how = AugmentConfig(resized_crop={"area": [1, 1], "ratio": [1, 1]})
    shown = augment_batch({"clip": clip, "label": torch.zeros(1)}, how, draws_with({}), (1, 8, 12))
    expected = F.interpolate(clip[0].float().movedim(1, 0), size=(8, 12), mode="bilinear", antialias=True)
    assert (shown["clip"][0, :, 0].float() - expected[0]).abs().max() <= 0.51


def test_views_of_a_section_are_those_of_the_seed_and_the_loader_shows_them() -> None:
    how = AugmentConfig(flip=True, resized_crop={}, color={"brightness": 0.3, "hue": 0.1})
    base = MemoryDataset({"clip": clips(6, 3, 2, 8, 8), "label": torch.zeros(6, dtype=torch.int64)})
    raw = next(ClipLoader(base, 6).epoch(0))
    views = Views(how, seed=5, count=3)
    shown = [views.show(raw, view, len(base))["clip"] for view in range(3)]
    assert not torch.equal(shown[0], shown[1])
    for batch in ClipLoader(base, 4, seed=1, shuffle=True, augment=views).epoch(2):
        for index, view, clip in zip(batch["index"], batch["view"], batch["clip"], strict=True):
            assert torch.equal(clip, shown[view][index])


def test_features_have_windows_in_time_and_no_colors() -> None:
    batch = {"features": torch.arange(10.0).view(1, 10, 1), "label": torch.zeros(1)}
    with pytest.raises(DataError, match="augmentation color changes colours, which frame features lack; set augment"):
        augment_batch(batch, AugmentConfig(color={"hue": 0.1}, temporal={}), draws_with({}))

    def shown(how: Augment, **options: bool) -> list[int]:
        draws = draws_with({9: 0.0, 10: 0.5})  # the shortest window, in the middle
        return augment_batch(batch, how, draws, (4, 0, 0), **options)["features"][0, :, 0].int().tolist()

    assert shown("none") == [1, 3, 6, 8]
    assert shown("none", consecutive=True) == [3, 4, 5, 6]
    assert shown(AugmentConfig(temporal={"window": (0.5, 1)})) == [3, 4, 5, 6]
    assert shown(AugmentConfig(temporal={"window": (0.6, 1)})) == [2, 4, 5, 7]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "a section must vary something; set one of flip, crop, resized_crop, color, temporal"),
        ({"crop": True, "resized_crop": {}}, "crop and resized_crop both take a window; leave one of them out"),
        ({"resized_crop": {"area": [0.9, 0.1]}}, r"area must be \[least, largest\], but is \[0.9, 0.1\]"),
        ({"color": {}}, "one of brightness, contrast, saturation and hue must be above 0"),
    ],
)
def test_sections_that_mean_nothing_are_refused(section: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(Augment).validate_python(section)
