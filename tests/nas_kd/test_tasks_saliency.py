from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.data import DataError, DataInfo, MemoryDataset, SequencesConfig, load, make_splits
from nas_kd.data.sample import IGNORE
from nas_kd.preflight.view_checks import _check_augment
from nas_kd.tasks import TASKS, Saliency, SaliencyConfig, make_task
from nas_kd.tasks.saliency_metrics import auc_judd, auc_shuffled, correlation, nss, similarity

H, W = 8, 12
POINTS = SaliencyConfig(ground_truth="fixations", sigma=1.5)


def info(height: int = H, width: int = W, points: bool = False) -> DataInfo:
    return DataInfo(2, ("a", "b"), 2, height, width, "toy", mask_names=("background", "object"), points=points)


def random_masks(count: int, share: float = 0.2, seed: int = 0) -> Tensor:
    """(N, 2, H, W); the second frames are all object, and nothing may look at them."""
    generator = torch.Generator().manual_seed(seed)
    first = (torch.rand(count, H, W, generator=generator) < share).to(torch.uint8)
    return torch.stack([first, torch.ones_like(first)], 1)


def test_what_the_task_says() -> None:
    task = make_task("saliency", info(points=True), {"ground_truth": "fixations", "sigma": 2.5, "loss": "l1"})
    assert isinstance(task, Saliency)
    assert (task.num_outputs, task.class_names, task.keys) == (1, ("saliency",), ("mask",))
    assert TASKS["saliency"].dense
    assert not TASKS["saliency"].framewise
    assert not TASKS["segmentation"].dense
    assert (task.sigma, Saliency(info(points=True), SaliencyConfig(ground_truth="fixations")).sigma) == (2.5, W / 30)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sigma": 2}, "sigma blurs fixation points, but ground_truth is mask and sigma is 2; set ground_truth"),
        ({"ground_truth": "points"}, "task_options: ground_truth: "),
        ({"ground_truth": "fixations", "sigma": 0}, "sigma: .*greater than 0"),
        ({"loss": "kl"}, "task_options: loss: "),
        (
            {"ground_truth": "fixations"},
            "task_options.ground_truth: .* the masks of 'toy' are areas; set ground_truth: mask",
        ),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        make_task("saliency", info(), options)
    assert "\n" not in str(caught.value)


def test_data_and_maps_that_do_not_fit_are_refused() -> None:
    bare = DataInfo(2, ("a", "b"), 2, H, W, "bare")
    with pytest.raises(ValueError, match=r"no masks that say what is looked at: .* but 'bare' names 0"):
        Saliency(bare)
    batch = {"mask": random_masks(3)}
    for shape in ((3, 2, 4, 4), (2, 1, 4, 4), (3, 2, 1, 4, 4), (3, 1)):
        with pytest.raises(ValueError, match=r"needs one map a clip, of shape \(3, 1, 'h', 'w'\)"):
            Saliency(info()).loss(torch.zeros(shape), batch)
        with pytest.raises(ValueError, match="needs one map a clip"):
            Saliency(info()).update(torch.zeros(shape), batch)
    with pytest.raises(ValueError, match=r"maps are \(3, 1, 4, 4\) and the targets \(2, 1, 4, 4\); give one"):
        Saliency(info()).map_loss(torch.zeros(3, 1, 4, 4), torch.zeros(2, 1, 4, 4))


def test_points_are_not_taken_for_objects() -> None:
    with pytest.raises(ValueError, match=r"'toy' are fixation points .*; set ground_truth: fixations$") as caught:
        make_task("saliency", info(points=True), {})
    assert str(caught.value).startswith("task_options.ground_truth: ")


def clips(masks: Tensor, **more: Tensor) -> MemoryDataset:
    """Black clips with masks."""
    count = len(masks)
    clip, label = torch.zeros(count, 3, 2, H, W, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    return MemoryDataset({"clip": clip, "label": label, "mask": masks, **more})


@pytest.mark.parametrize(
    ("split", "use"), [("train", "be trained"), ("val", "score students"), ("test", "score students")]
)
def test_a_split_in_which_nothing_is_looked_at_is_refused(split: str, use: str) -> None:
    sets = {name: clips(random_masks(4)) for name in ("train", "val", "test")}
    Saliency(info()).check_splits(make_splits(**sets, info=info(), seed=0))
    masks = torch.ones(4, 2, H, W, dtype=torch.uint8)  # of second frames, that nothing may look at
    masks[:, 0], masks[:2, 0, 0] = 0, IGNORE
    splits = make_splits(**{**sets, split: clips(masks)}, info=info(), seed=0)
    with pytest.raises(
        DataError, match=rf"^data: the split '{split}' .* fixated .* {use} .* none of its 4 items has one"
    ):
        Saliency(info()).check_splits(splits)
    masks[3, 0, 5, 5] = 1
    Saliency(info()).check_splits(splits)


def test_others_of_sequences_need_sequences() -> None:
    options = {"others": "sequences"}
    bare = clips(random_masks(4))
    numbered = clips(random_masks(4), sequence=torch.arange(4))
    make_task("saliency", info(), options).check_splits(make_splits(numbered, numbered, numbered, info(), seed=0))
    for sets in ((bare, bare, bare), (numbered, numbered, bare)):
        splits = make_splits(*sets, info(), seed=0)
        with pytest.raises(
            DataError, match=r"^task_options\.others: sequences needs .*'toy' do not; set others: frames$"
        ):
            make_task("saliency", info(), options).check_splits(splits)
        make_task("saliency", info(), {}).check_splits(splits)


def test_the_density_of_a_mask_is_the_mask() -> None:
    mask = torch.tensor([[[0, 1, IGNORE], [2, 0, 0]]], dtype=torch.uint8)
    density = Saliency(info()).density(mask)
    assert density.dtype == torch.float32
    assert density.tolist() == [[[[0, 1, 0], [1, 0, 0]]]]


def test_the_density_of_points_is_their_blur() -> None:
    task = Saliency(info(points=True), POINTS)
    mask = torch.zeros(3, H, W, dtype=torch.uint8)
    mask[0, 2, 3] = 1
    mask[1, 1, 1] = mask[1, 6, 10] = mask[1, 1, 2] = 1
    mask[1, 4, 4] = IGNORE
    density = task.density(mask)
    assert density.shape == (3, 1, H, W)
    for n, points in enumerate(([(2, 3)], [(1, 1), (6, 10), (1, 2)])):
        slow = [
            [sum(math.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 1.5**2)) for a, b in points) for x in range(W)]
            for y in range(H)
        ]
        expected = torch.tensor(slow) / max(max(row) for row in slow)
        assert torch.allclose(density[n, 0], expected, atol=1e-6)
    assert density[0, 0, 2, 3] == 1.0
    assert not bool(density[2].any())


@pytest.mark.parametrize(("loss", "power"), [("mse", 2), ("l1", 1)])
def test_the_loss_compares_at_the_size_of_the_map(loss: str, power: int) -> None:
    torch.manual_seed(0)
    task = make_task("saliency", info(), {"loss": loss})
    mask, maps = random_masks(2), torch.randn(2, 1, 4, 6)
    truth = mask[:, 0].float()
    total = 0.0
    for n in range(2):
        for y in range(4):
            for x in range(6):
                mean = float(truth[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean())
                total += abs(float(maps[n, 0, y, x]) - mean) ** power
    assert task.loss(maps, {"mask": mask}).item() == pytest.approx(total / 48, rel=1e-5)
    whole = torch.randn(2, 1, H, W)
    expected = (whole[:, 0] - truth).abs().pow(power).mean()
    assert task.loss(whole, {"mask": mask}).item() == pytest.approx(expected.item(), rel=1e-5)


def test_pixels_without_a_label_are_in_no_loss() -> None:
    torch.manual_seed(0)
    mask = random_masks(2)
    mask[:, 0, :, 5:] = IGNORE  # cuts through the third column of cells
    task, maps = Saliency(info()), torch.randn(2, 1, 4, 6)
    truth = mask[:, 0].float()
    weights = torch.tensor([1, 1, 0.5, 0, 0, 0])
    cells = torch.zeros(2, 4, 6)
    for y in range(4):
        for x in range(3):
            cells[:, y, x] = truth[:, 2 * y : 2 * y + 2, 2 * x : min(2 * x + 2, 5)].flatten(1).mean(1)
    expected = ((maps[:, 0] - cells).square() * weights).sum() / (2 * 4 * 2.5)
    assert task.loss(maps, {"mask": mask}).item() == pytest.approx(expected.item(), rel=1e-5)
    mask[:, 0] = IGNORE
    maps.requires_grad_()
    loss = task.loss(maps, {"mask": mask})
    loss.backward()
    assert loss.item() == 0.0
    assert maps.grad is not None
    assert not bool(maps.grad.any())


def test_the_best_map_has_no_loss() -> None:
    for config in (SaliencyConfig(), POINTS, SaliencyConfig(loss="l1")):
        task, mask = Saliency(info(points=config is POINTS), config), random_masks(3)
        maps = task.density(mask[:, 0])
        assert task.loss(maps, {"mask": mask}).item() == 0.0
        assert task.map_loss(maps, maps).item() == 0.0
        assert task.map_loss(maps + 0.5, maps).item() == pytest.approx(0.5 if config.loss == "l1" else 0.25)


def test_soft_maps_are_brought_to_the_size_of_the_outputs() -> None:
    torch.manual_seed(0)
    task, outputs = Saliency(info()), torch.randn(2, 1, 4, 6, requires_grad=True)
    fine, coarse = torch.rand(2, 1, 8, 12), torch.rand(2, 1, 2, 3)
    blocks = fine.view(2, 1, 4, 2, 6, 2).mean((3, 5))
    assert task.map_loss(outputs, fine).item() == pytest.approx((outputs - blocks).square().mean().item(), rel=1e-5)
    raised = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    loss = task.map_loss(outputs, coarse)
    assert loss.item() == pytest.approx((outputs - raised).square().mean().item(), rel=1e-5)
    loss.backward()
    assert outputs.grad is not None
    assert torch.allclose(outputs.grad, 2 * (outputs.detach() - raised) / 48, atol=1e-6)
    # It agrees with the loss where the soft map is the density.
    mask = random_masks(2)
    assert task.map_loss(outputs, mask[:, :1].float()).item() == pytest.approx(
        task.loss(outputs, {"mask": mask}).item()
    )


def test_pixels_of_a_soft_map_that_are_not_known_have_no_say() -> None:
    torch.manual_seed(0)
    task, outputs, fine = Saliency(info()), torch.randn(2, 1, 2, 3), torch.rand(2, 1, 4, 6)
    known = torch.rand(2, 1, 4, 6) > 0.4
    known[0, 0, :2, :2] = False  # one output without any
    above = below = 0.0
    for n, y, x in itertools.product(range(2), range(2), range(3)):
        inside = (n, 0, slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))
        if share := known[inside].float().mean().item():
            above += share * (outputs[n, 0, y, x] - fine[inside][known[inside]].mean()).item() ** 2
            below += share
    assert task.map_loss(outputs, fine, known).item() == pytest.approx(above / below, rel=1e-5)
    assert task.map_loss(outputs, torch.where(known, fine, 9.0), known) == task.map_loss(outputs, fine, known)
    assert task.map_loss(outputs, fine, torch.ones_like(known)).item() == pytest.approx(
        task.map_loss(outputs, fine).item(), rel=1e-5
    )
    assert task.map_loss(outputs, fine, torch.zeros_like(known)).item() == 0.0


@pytest.mark.parametrize("config", [SaliencyConfig(), POINTS])
def test_metrics_are_means_over_frames_with_fixations(config: SaliencyConfig) -> None:
    torch.manual_seed(0)
    mask, maps = random_masks(5, seed=1), torch.randn(5, 1, 4, 6)
    mask[2, 0] = 0
    mask[3, 0, 2:4] = IGNORE
    task = Saliency(info(points=config is POINTS), config)
    task.update(maps[:3], {"mask": mask[:3]})
    task.update(maps[3:], {"mask": mask[3:]})
    values = task.compute()
    raised = F.interpolate(maps, size=(H, W), mode="bilinear", align_corners=False)[:, 0]
    fixated = mask[:, 0] == 1
    density = task.density(mask[:, 0])[:, 0]
    rows, errors = [], []
    for n in range(5):
        known = (mask[n, 0] != IGNORE).flatten()
        found, here, truth = (x[n].flatten()[known] for x in (raised, fixated, density))
        errors.append((found.clamp(0, 1) - truth).abs())
        if n == 2:
            continue
        others = sum(fixated[m].long() for m in range(5) if m != n).flatten()[known]
        rows.append(
            {
                "nss": nss(found, here),
                "auc_judd": auc_judd(found, here),
                "auc_shuffled": auc_shuffled(found, here, others),
                "sim": similarity(found, truth),
                "cc": correlation(found, truth),
            }
        )
    expected = {name: sum(row[name] for row in rows) / 4 for name in rows[0]}
    expected |= {"mae": float(torch.cat(errors).mean()), "scored_share": 0.8}
    assert values == pytest.approx(expected, rel=1e-5)
    assert task.metric in values
    with pytest.raises(ValueError, match="at least one fixated pixel, but the split has none"):
        task.compute()  # the last call cleared them


def test_the_true_map_has_the_best_values_and_a_constant_one_those_of_chance() -> None:
    mask = random_masks(4)
    task = Saliency(info())
    task.update(task.density(mask[:, 0]), {"mask": mask})
    best = task.compute()
    assert best["auc_judd"] == 1.0
    assert (best["sim"], best["cc"], best["mae"], best["scored_share"]) == pytest.approx((1, 1, 0, 1))
    share = mask[:, 0].flatten(1).double().mean(1)
    assert best["nss"] == pytest.approx(float(((1 - share) / (share * (1 - share) * 96 / 95).sqrt()).mean()))
    task.update(torch.full((4, 1, 3, 5), 0.7), {"mask": mask})
    chance = task.compute()
    assert (chance["nss"], chance["cc"], chance["auc_judd"], chance["auc_shuffled"]) == (0, 0, 0.5, 0.5)
    assert chance["sim"] == pytest.approx(float(share.mean()))


def test_what_all_frames_share_wins_nothing_in_the_shuffled_area() -> None:
    mask = torch.zeros(6, 2, H, W, dtype=torch.uint8)
    mask[:, 0, 3:5, 4:8] = 1  # everyone looks at the centre, always
    centre = torch.zeros(6, 1, H, W)
    centre[:, :, 2:6, 3:9] = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) + 1
    task = Saliency(info())
    task.update(centre, {"mask": mask})
    values = task.compute()
    assert values["auc_shuffled"] == pytest.approx(0.5)
    assert values["auc_judd"] > 0.9


def test_others_may_be_of_other_sequences_only() -> None:
    torch.manual_seed(0)
    mask, maps, sequences = random_masks(5, seed=1), torch.randn(5, 1, H, W), [4, 4, 7, 7, 9]
    task = make_task("saliency", info(), {"others": "sequences"})
    assert task.keys == ("mask", "sequence")
    assert Saliency(info()).keys == Saliency.keys == ("mask",)
    for part in (slice(0, 3), slice(3, 5)):
        task.update(maps[part], {"mask": mask[part], "sequence": torch.tensor(sequences[part])})
    fixated = mask[:, 0] == 1
    expected = []
    for n in range(5):
        others = sum(fixated[m].long() for m in range(5) if sequences[m] != sequences[n])
        assert isinstance(others, Tensor)
        expected.append(auc_shuffled(maps[n, 0], fixated[n], others))
    assert task.compute()["auc_shuffled"] == pytest.approx(sum(expected) / 5)
    task.update(maps[:2], {"mask": mask[:2], "sequence": torch.tensor([3, 3])})
    assert "auc_shuffled" not in task.compute()


def test_one_frame_has_no_others() -> None:
    task, mask = Saliency(info()), random_masks(2)
    mask[1, 0] = 0
    task.update(torch.randn(2, 1, 4, 6), {"mask": mask})
    values = task.compute()
    assert "auc_shuffled" not in values
    assert values["scored_share"] == 0.5


def test_half_precision_maps_are_read() -> None:
    torch.manual_seed(0)
    task, mask, maps = Saliency(info(points=True), POINTS), random_masks(2), torch.randn(2, 1, 4, 6).bfloat16()
    assert task.loss(maps, {"mask": mask}).item() == pytest.approx(task.loss(maps.float(), {"mask": mask}).item())
    task.update(maps, {"mask": mask})
    values = task.compute()
    task.update(maps.float(), {"mask": mask})
    assert task.compute() == values


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"retrain": {"augment": "flip+crop"}}, "retrain.augment"),
        ({"teacher": {"fit": {"augment": "flip+crop"}}}, "teacher.fit.augment"),
        ({"knobs": {"search.augment": {"type": "choice", "values": ["none", "flip+crop"]}}}, "knobs.search.augment"),
    ],
)
def test_points_are_not_cropped(tmp_path: Path, change: dict[str, Any], path: str) -> None:
    for points, augment in ((True, "flip+crop"), (True, "flip"), (False, "flip+crop")):
        data = {"source": "sequences", "root": tmp_path, "binary": True, "points": points}
        config = CampaignConfig.model_validate(
            {"data": data, "retrain": {"augment": augment}} if augment == "flip" else {"data": data, **change}
        )
        info = config.data.info  # type: ignore[union-attr]
        if points and augment == "flip+crop":
            with pytest.raises(ConfigError, match=rf"^{path}: 'flip\+crop' resamples labels, .*; use flip or none$"):
                _check_augment(config, info)
        else:
            _check_augment(config, info)


DAVIS = Path(__file__).parents[2].parent / "shared" / "data" / "davis16-val-saliency"


@pytest.mark.skipif(not DAVIS.is_dir(), reason="needs ../shared/data/davis16-val-saliency beside the checkout")
def test_a_centre_prior_on_real_videos(tmp_path: Path) -> None:
    """Values that numpy alone gives from the files of the masks, by ranks and by moments of whole arrays."""
    height, width = 64, 112
    header, *rows = (DAVIS / "labels.csv").read_text().splitlines()
    few = [row for row in rows if int(row.split(",")[-1]) < 24]
    few = [row for row in few if row.split(",")[2] != "train" or row.split(",")[3] < "camel"]
    (tmp_path / "few.csv").write_text("\n".join([header, *few]))
    options = {"root": DAVIS, "labels": str(tmp_path / "few.csv"), "cache_dir": tmp_path / "cache"}
    splits = load(SequencesConfig(frames=2, size=(height, width), binary=True, **options), seed=0)
    y, x = np.mgrid[:height, :width]
    prior = np.exp(-(((y - 31.5) / height) ** 2 + ((x - 55.5) / width) ** 2) / (2 * 0.25**2)).astype(np.float32)
    task, masks = Saliency(splits.info), []
    for sample in (splits.test[n] for n in range(len(splits.test))):
        task.update(torch.from_numpy(prior)[None, None], {"mask": sample["mask"][None]})
        masks.append(sample["mask"][0].numpy() == 1)
    values = task.compute()
    zscores = (prior - prior.mean(dtype=np.float64)) / prior.std(dtype=np.float64, ddof=1)
    scored = [mask for mask in masks if mask.any()]
    assert values["scored_share"] == pytest.approx(len(scored) / len(masks))
    assert values["nss"] == pytest.approx(np.mean([zscores[mask].mean() for mask in scored]), rel=1e-4)
    ranks = scipy.stats.rankdata(prior).reshape(height, width)
    areas = []
    for mask in scored:
        n = mask.sum()
        areas.append((ranks[mask].sum() - n * (n + 1) / 2) / (n * (mask.size - n)))
    # Judd's trapezoids and the rank statistic differ by half a fixation at most.
    assert values["auc_judd"] == pytest.approx(np.mean(areas), abs=max(0.5 / mask.sum() for mask in scored))
    total, shuffled = sum(mask.astype(np.int64) for mask in scored), []
    order = np.argsort(prior, axis=None, kind="stable")
    by_value = prior.ravel()[order]
    for mask in scored:
        others = total - mask
        below = np.concatenate([[0], others.ravel()[order].cumsum()])
        place = [np.searchsorted(by_value, prior[mask], side) for side in ("left", "right")]
        shuffled.append((below[place[0]] + below[place[1]]).mean() / (2 * below[-1]))
    assert values["auc_shuffled"] == pytest.approx(np.mean(shuffled), abs=1e-6)
    assert len(masks) == 60
    assert 0.7 < values["auc_judd"] < 0.95
    assert 0.45 < values["auc_shuffled"] < 0.55
    assert 0.5 < values["nss"] < 2
