"""What a bundle makes of source data is what the trial's student saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas_kd.config import CampaignConfig
from nas_kd.deploy.bundle import BundleInfo, load_bundle
from nas_kd.deploy.student_view import StudentView, view_of
from nas_kd.search_spaces import Supernet
from nas_kd.trial import CampaignContext, SearchTrial, build_context
from nas_kd.trial.trial import Training
from nas_kd.trials import Cost, TrialContext


def saved(context: CampaignContext, folder: Path, **knobs: Any) -> tuple[BundleInfo, torch.Tensor, torch.Tensor]:
    """What is known about a student that a trial left, a batch of source data, and what the student saw of it."""
    trial = SearchTrial(context, context.config, TrialContext(number=0, knobs=knobs, seed=5, directory=folder))
    arch = Supernet(context.space, trial.knobs).arch()
    student = context.space.student(arch)
    trial._save([Training(student, 5, {})], 0, arch, Cost(flops=1, params=1, latency_ms=None))
    loaded, info = load_bundle(folder)
    batch = next(iter(context.loader(context.splits.val, context.config.retrain, seed=0, train=False).epoch(0)))
    seen = context.space.fit_input(context.input_type.read(batch), trial.knobs)
    assert seen.shape[1:] == info.input_shape
    torch.testing.assert_close(loaded(seen), student.eval()(seen))
    return info, batch[context.splits.info.input_key], seen


def test_clips_are_normalised_thinned_and_resampled(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    normalize = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    context = build_context(tiny(normalize=normalize, space={"frames": [2, 4]}), "cpu")
    info, clips, seen = saved(context, tmp_path, frames=2, resolution=12)
    assert info.mean == (0.4, 0.5, 0.6)
    assert seen.shape[1:] == (3, 2, 12, 12)
    assert torch.equal(info.prepare(clips), seen)
    assert info.view == StudentView(frames=(1, 3), size=(12, 12))
    with pytest.raises(ValueError, match=r"reads clips, .* in bytes .* but got \(16, 3, 4, 16, 16\) of torch\.float32"):
        info.prepare(clips.float())


def test_of_features_the_selector_takes_frames_and_nothing_is_normalised(
    tiny: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    np.save(tmp_path / "all.npy", np.random.default_rng(0).normal(size=(12, 7, 8)).astype(np.float16))
    rows = [f"all.npy#{i},{'ab'[i % 2]},{('train', 'val', 'test')[i // 4]}" for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    small = {"lower": [4], "upper": [4], "block_length": [2]}
    sizes = {"lower": 4, "upper": 4, "block_length": 2}
    config = CampaignConfig.model_validate(
        {
            "data": {"source": "features", "root": str(tmp_path)},
            "teacher": {"settings": {"h_rnn": sizes}},
            "space": {"frames": [2, 3], "selector": ["uniform", "last", "random"], "h_rnn": small},
        }
    )
    context = build_context(config, "cpu")
    info, features, seen = saved(context, tmp_path / "bundle", frames=3, selector="last")
    assert (info.mean, info.std) == (None, None)
    assert torch.equal(info.prepare(features), seen)
    assert torch.equal(seen, features[:, 4:].float())
    assert info.view == StudentView(frames=(4, 5, 6), size=None)
    drawn = view_of(context.space, {**context.space.knobs_with(), "frames": 3, "selector": "random"}, (7, 8))
    assert drawn is None  # which frames it takes differs from item to item
    with pytest.raises(ValueError, match=r"reads frame features, \(N, T, 8\) .* but got \(2, 7, 9\)"):
        info.prepare(torch.zeros(2, 7, 9))


def test_of_saliency_the_first_two_frames_are_taken(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    base = tiny().model_dump(mode="json", include={"runs", "data", "resources"})
    config = CampaignConfig.model_validate({**base, "task": "saliency", "teacher": {"settings": {"widths": [2, 2]}}})
    context = build_context(config, "cpu")
    info, clips, seen = saved(context, tmp_path)
    assert seen.shape[1:] == (3, 2, 32, 32)
    assert torch.equal(info.prepare(clips), seen)
    assert torch.equal(info.prepare(clips[:, :, :2]), seen)


def test_streams_take_frames_and_clips_as_they_are(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    base = tiny().model_dump(mode="json", include={"runs", "data", "resources"})
    settings = {"widths": [4, 6], "depths": [1, 1], "head_width": 4}
    config = CampaignConfig.model_validate({**base, "task": "segmentation", "teacher": {"settings": settings}})
    context = build_context(config, "cpu")
    info, clips, seen = saved_stream(context)
    assert torch.equal(info.prepare(clips), seen)
    assert torch.equal(info.prepare(clips[:, :, 1]), seen[:, :, 1])


def saved_stream(context: CampaignContext) -> tuple[BundleInfo, torch.Tensor, torch.Tensor]:
    arch = Supernet(context.space).arch()
    normalize = context.config.normalize
    info = BundleInfo(
        arch=arch.as_dict(),
        arch_id=arch.arch_id,
        input_shape=(3, 3, 16, 16),
        mean=normalize.mean,
        std=normalize.std,
        source_frames=4,
        source_size=(16, 16),
        class_names=context.task.class_names,
        task="segmentation",
        seed=0,
        flops=1,
        params=1,
        metrics={},
        keyframe_interval=3,
    )
    batch = next(iter(context.loader(context.splits.val, context.config.retrain, seed=0, train=False).epoch(0)))
    return info, batch["clip"], context.input_type.read(batch)


@pytest.mark.parametrize(("asked", "size"), [({}, 5), ({"evaluation": {"batch_size": 7}}, 7)])
def test_evaluation_takes_batches_of_the_training_or_those_asked_for(
    asked: dict[str, Any], size: int, tiny: Callable[..., CampaignConfig]
) -> None:
    context = build_context(tiny(retrain={"batch_size": 5}, **asked), "cpu")
    seen: list[int] = []
    context.evaluate_teacher(context.splits.val, lambda outputs, batch: seen.append(len(outputs)))
    assert seen[:-1] == [size] * (24 // size)
    assert sum(seen) == 24
