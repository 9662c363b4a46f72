"""Views of a clip in evaluation: which frames and pixels, and the average of their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nas_kd.config import CampaignConfig
from nas_kd.data import ClipLoader, DataError, DataInfo, MemoryDataset
from nas_kd.data.framing import Cut, evaluation_cuts, middle_cut
from nas_kd.deploy.measure import LabelledSet, measure
from nas_kd.inputs.clips import ClipInput
from nas_kd.inputs.frames import FrameInput
from nas_kd.tasks import make_task
from nas_kd.training.evaluate import evaluate
from nas_kd.trial import build_context

STORED, SEEN = (16, 8, 14), (4, 8, 10)


def test_one_clip_is_the_middle_and_several_interleave_or_follow_each_other() -> None:
    assert evaluation_cuts(STORED, SEEN) == (middle_cut(STORED, SEEN),) == (Cut((2, 6, 10, 14), 0, 2, 8, 10),)
    whole = evaluation_cuts(STORED, SEEN, clips=4)
    assert [cut.frames for cut in whole] == [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    halves = evaluation_cuts(STORED, SEEN, clips=3, window=0.5)
    assert [cut.frames for cut in halves] == [(1, 3, 5, 7), (5, 7, 9, 11), (9, 11, 13, 15)]
    assert evaluation_cuts(STORED, SEEN, window=0.25)[0].frames == (6, 7, 8, 9)


def test_three_crops_lie_along_the_longer_side() -> None:
    wide = evaluation_cuts(STORED, SEEN, clips=2, crops=3)
    assert [(cut.frames[0], cut.top, cut.left) for cut in wide] == [
        (1, 0, 0), (1, 0, 2), (1, 0, 4), (3, 0, 0), (3, 0, 2), (3, 0, 4)
    ]  # fmt: skip
    high = evaluation_cuts((4, 20, 12), (4, 10, 10), crops=3)
    assert [(cut.top, cut.left) for cut in high] == [(0, 1), (5, 1), (10, 1)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clips": 5}, "5 clips of 4 frames from 1 of the stored clip need 20 stored frames, but there are 16"),
        ({"clips": 2, "window": 0.2}, "2 clips of 4 frames from 0.2 of the stored clip need 20 stored frames"),
        ({"crops": 3, "seen": (4, 8, 14)}, r"need a larger stored frame, such as \[8, 19\], but it has as many"),
    ],
)
def test_views_that_would_be_alike_are_refused(change: dict[str, Any], words: str) -> None:
    options = {"stored": STORED, "seen": SEEN, **change}
    with pytest.raises(DataError, match=words):
        evaluation_cuts(**options)


def test_an_evaluation_takes_no_more_at_once_than_a_training_step_unless_it_is_told(
    tiny: Callable[..., CampaignConfig],
) -> None:
    context = build_context(tiny(), "cpu")
    data, info = context.splits.val, context.splits.info
    frames = FrameInput(info, (0.5,) * 3, (0.5,) * 3)
    for trained, asked, of_clips, of_frames in ((5, None, 5, 5), (100, None, 64, 8), (5, 9, 9, 9), (100, 3, 3, 3)):
        config = tiny(retrain={"batch_size": trained}, evaluation={"batch_size": asked})
        sizes = [
            replace(context, config=config, input_type=each).eval_batch_size for each in (context.input_type, frames)
        ]
        assert sizes == [of_clips, of_frames]
        batch = next(
            iter(replace(context, config=config).loader(data, config.retrain, seed=0, train=False).evaluation())
        )
        assert len(batch[0]["clip"]) == min(of_clips, len(data))


def test_logits_of_the_views_are_averaged_before_the_softmax() -> None:
    clip = torch.randint(0, 256, (5, 3, *STORED), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(5) % 3
    data = MemoryDataset({"clip": clip, "label": labels})
    cuts = evaluation_cuts(STORED, SEEN, clips=2, window=0.5, crops=3)
    shapes = set()

    def net(inputs: Tensor) -> Tensor:
        shapes.add(tuple(inputs.shape[1:]))
        return inputs.float().mean((2, 3, 4)) / 4 - inputs.float()[:, :, 0, 0, 0] / 30

    task = make_task("classification", DataInfo(3, ("a", "b", "c"), *SEEN, "set"), {})
    found = evaluate(net, ClipLoader(data, 2, cuts=cuts), task, lambda batch: batch["clip"])
    assert shapes == {(3, *SEEN)}
    parts = [clip[:, :, first : first + 8 : 2, :, left : left + 10] for first in (1, 9) for left in (0, 2, 4)]
    logits = sum(net(part) for part in parts) / 6
    assert found["cross_entropy"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    # An export measures the same from its files.
    info = SimpleNamespace(class_names=("a", "b", "c"), source_frames=4, source_size=(8, 10), input_type=ClipInput)
    backend = SimpleNamespace(name="stub", files=("stub",), interval=None)
    predictor: Any = SimpleNamespace(info=info, backend=backend, outputs=net)
    (again,) = measure([predictor], LabelledSet("val", data, None, task.info, lambda: task, cuts), batch_size=2)
    assert (again.metrics, again.measured.views) == (found, 6)
    other = F.nll_loss((sum(net(part).softmax(1) for part in parts) / 6).log(), labels).item()
    assert found["cross_entropy"] != pytest.approx(other, rel=1e-3)
