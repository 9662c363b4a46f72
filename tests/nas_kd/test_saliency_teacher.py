"""The two-branch teacher of saliency."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from nas_kd.search_spaces import count_flops
from nas_kd.search_spaces.saliency import SaliencySettings, SaliencySpace
from nas_kd.teachers.saliency import SaliencyTeacherSettings, TwoBranch, build_saliency_teacher

SMALL = {"widths": (4, 6, 8), "depth": 1}


def clip(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (30, 6), (5, 3)])
def test_maps_have_the_size_of_the_frames(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    teacher = build_saliency_teacher(1, SMALL).eval()
    frames = clip(2, 3, 4, *size)
    with torch.no_grad():
        maps = teacher.branches(frames)
        assert {name: m.shape for name, m in maps.items()} == dict.fromkeys(("spatial", "temporal"), (2, 1, *size))
        assert torch.equal(teacher(frames), (maps["spatial"] + maps["temporal"]) / 2)
        assert torch.equal(maps["spatial"], teacher.spatial(frames[:, :, 0]))
        assert torch.equal(maps["temporal"], teacher.temporal(frames[:, :, :2]))


def test_each_branch_sees_its_frames_and_no_others() -> None:
    torch.manual_seed(0)
    teacher = build_saliency_teacher(1, SMALL).eval()
    frames = clip(1, 3, 3, 16, 16).requires_grad_()
    seen = {}
    for name, out in teacher.branches(frames).items():
        (grad,) = torch.autograd.grad(out.square().sum(), frames)
        seen[name] = [bool(grad[:, :, t].abs().max() > 0) for t in range(3)]
    assert seen == {"spatial": [True, False, False], "temporal": [True, True, False]}


def test_the_temporal_branch_reads_the_frame_and_the_difference() -> None:
    torch.manual_seed(0)
    branch = build_saliency_teacher(1, SMALL).eval().temporal
    frames = clip(2, 3, 2, 16, 16)
    first = branch.down[0][0]
    got = {}
    first.register_forward_pre_hook(lambda _, inputs: got.update(x=inputs[0]))
    with torch.no_grad():
        branch(frames)
    assert torch.equal(got["x"], torch.cat([frames[:, :, 0], frames[:, :, 0] - frames[:, :, 1]], 1))


def test_it_is_bigger_than_every_student() -> None:
    space = SaliencySpace(SaliencySettings(side=(64,)))
    teacher = count_flops(build_saliency_teacher(1, {}), torch.zeros(1, 3, 2, 64, 64)).total
    assert teacher > 2 * space.cost(space.widest({}))  # of the same side; students see smaller frames, too


def test_it_learns_where_things_move() -> None:
    """A dot among still ones moves: the spatial branch cannot tell it from the others, the temporal one can."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    places = torch.stack([torch.randperm(36, generator=generator)[:4] for _ in range(48)])
    dots = F.one_hot(places, 36).float().unflatten(2, (6, 6))
    frames = torch.stack([dots.sum(1), dots[:, 1:].sum(1) + dots[:, 0].roll(1, 2)], 1).clamp(max=1)
    up = F.interpolate(frames, scale_factor=2.0)[:, None].expand(-1, 3, -1, -1, -1)
    target = F.interpolate(dots[:, :1], scale_factor=2.0)
    teacher = TwoBranch(SaliencyTeacherSettings(widths=(8, 12), depth=2))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(30):
        losses = {name: F.mse_loss(m, target) for name, m in teacher.branches(up).items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert losses["temporal"] < 0.5 * losses["spatial"] < 0.5 * target.var()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"widths": (8,)}, "at least 2 items"),
        ({"widths": (8, 0)}, "greater than or equal to 1"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"width": 8}, "width"),
    ],
)
def test_settings_that_make_no_net_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        build_saliency_teacher(1, settings)


def test_sentences_for_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="returns one map a frame, but the task needs 3 outputs"):
        build_saliency_teacher(3, {})
    with pytest.raises(
        ValueError,
        match=r"reads frames t and t \+ 1, whatever its students read, but .* has 1 frame; .* \(data\.frames\)",
    ):
        build_saliency_teacher(1, SMALL)(clip(1, 3, 1, 8, 8))
