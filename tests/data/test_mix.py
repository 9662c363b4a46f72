"""Mixed clips: pixels, shares and losses against hand computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas_kd.data import ClipLoader, DataInfo, MemoryDataset, MixConfig
from nas_kd.data.mix import blend, cut_and_paste, mix_batch
from nas_kd.tasks import make_task


def levels(*values: int) -> torch.Tensor:
    """Clips of one level each, (N, 3, 2, 8, 12)."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 8, 12).contiguous()


def test_mixup_is_the_weighted_sum() -> None:
    mixed = blend(levels(10, 100), torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    assert mixed[:, 0, 0, 0, 0].tolist() == [78, 100]  # 77.5 to the even number
    features = blend(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([1, 1]), torch.tensor([0.5, 0.5]))
    assert features.tolist() == [[2, 4], [3, 6]]


def test_cutmix_pastes_one_rectangle_into_all_frames_and_counts_its_pixels() -> None:
    # Half of each side: 4 × 6 pixels about the middle; about a corner a quarter of them is left.
    clips, share = cut_and_paste(
        levels(10, 100), torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    )
    expected = levels(10, 100)
    expected[0, :, :, 2:6, 3:9] = 100
    expected[1, :, :, :2, 9:] = 10
    assert torch.equal(clips, expected)
    assert share.tolist() == [1 - 24 / 96, 1 - 6 / 96]


@pytest.mark.parametrize("config", [MixConfig(mixup=0.4), MixConfig(cutmix=1), MixConfig(mixup=0.4, cutmix=1)])
def test_the_share_that_is_said_is_the_share_that_is_seen(config: MixConfig) -> None:
    base = MemoryDataset({"clip": levels(*range(0, 256, 25)), "label": torch.arange(11)})
    loader = ClipLoader(base, 4, seed=3, shuffle=True, mix=config)
    seen = []
    for batch in loader.epoch(1):
        own, other = (25.0 * labels for labels in (batch["label"], batch["label"][batch["mix_partner"]]))
        wanted = batch["mix_share"] * own + (1 - batch["mix_share"]) * other
        assert (batch["clip"].float().mean((1, 2, 3, 4)) - wanted).abs().max() <= 0.51
        seen.append(batch["clip"])
    again = [batch["clip"] for batch in ClipLoader(base, 4, seed=3, shuffle=True, mix=config).epoch(1)]
    assert all(torch.equal(one, other) for one, other in zip(seen, again, strict=True))
    assert not torch.equal(seen[0], next(ClipLoader(base, 4, seed=3, shuffle=True).epoch(1))["clip"])


def test_losses_weigh_both_labels() -> None:
    info = DataInfo(3, ("a", "b", "c"), 2, 8, 12, "set")
    outputs = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    batch = {"label": torch.tensor([0, 2]), "mix_partner": torch.tensor([1, 0]), "mix_share": torch.tensor([0.7, 1.0])}
    logs = outputs.log_softmax(1)
    plain = make_task("classification", info, {}).loss(outputs, batch)
    assert float(plain) == pytest.approx(float(-(0.7 * logs[0, 0] + 0.3 * logs[0, 2] + logs[1, 2]) / 2))
    weighted = make_task("classification", info, {"class_weights": [1, 1, 4]}).loss(outputs, batch)
    sums = -(0.7 * logs[0, 0] + 0.3 * 4 * logs[0, 2] + 4 * logs[1, 2])
    assert float(weighted) == pytest.approx(float(sums / (0.7 + 0.3 * 4 + 4)))
    own = {**batch, "mix_share": torch.ones(2)}
    for options in ({}, {"label_smoothing": 0.1, "class_weights": [1, 2, 4]}):
        task = make_task("classification", info, options)
        assert float(task.loss(outputs, own)) == pytest.approx(float(task.loss(outputs, {"label": batch["label"]})))
    several = DataInfo(3, ("a", "b", "c"), 2, 0, 0, "set", feature_size=4, multi_label=True)
    labels = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.uint8)
    loss = make_task("multilabel", several, {}).loss(outputs, {**batch, "labels": labels})
    target = torch.tensor([[0.7, 0.3, 1.0], [0.0, 1.0, 1.0]])
    assert float(loss) == pytest.approx(float(F.binary_cross_entropy_with_logits(outputs, target, reduction="sum") / 2))


def test_features_are_mixed_too() -> None:
    batch = {"features": torch.tensor([[[1.0]], [[3.0]]]), "label": torch.tensor([0, 1])}
    mixed = mix_batch(batch, MixConfig(mixup=1), np.random.default_rng(1))
    share, partner = mixed["mix_share"], mixed["mix_partner"]
    expected = share * torch.tensor([1.0, 3.0]) + (1 - share) * torch.tensor([1.0, 3.0])[partner]
    assert torch.allclose(mixed["features"][:, 0, 0], expected)
