"""Frame selectors: explicit lists, no overlap, random draws by torch's generator."""

from __future__ import annotations

import pytest
import torch

from nas_kd.search_spaces.frame_selectors import SELECTORS, select_frames, uniform

RULES = [name for name in SELECTORS if name != "random"]


@pytest.mark.parametrize(
    ("selector", "total", "wanted", "expected"),
    [
        ("uniform", 12, 4, [1, 4, 7, 10]),
        ("uniform", 10, 3, [1, 5, 8]),
        ("first", 10, 3, [0, 1, 2]),
        ("middle", 10, 4, [3, 4, 5, 6]),
        ("middle", 10, 3, [3, 4, 5]),
        ("middle", 9, 3, [3, 4, 5]),
        ("last", 10, 3, [7, 8, 9]),
        ("first_middle_last", 30, 6, [0, 1, 14, 15, 28, 29]),
        ("first_middle_last", 30, 7, [0, 1, 13, 14, 15, 28, 29]),
        ("first_middle_last", 30, 8, [0, 1, 2, 14, 15, 27, 28, 29]),
        ("first_middle_last", 7, 6, [0, 1, 2, 3, 5, 6]),
        ("first_middle_last", 9, 1, [4]),
        ("first_middle_last", 9, 2, [0, 8]),
    ],
)
def test_rules_give_these_frames(selector: str, total: int, wanted: int, expected: list[int]) -> None:
    rows = SELECTORS[selector](total, wanted, 3)
    assert rows.tolist() == [expected] * 3


@pytest.mark.parametrize(("total", "wanted"), [(8, 8), (16, 5), (3, 2), (7, 1)])
def test_uniform_frames_are_centres_of_equal_parts(total: int, wanted: int) -> None:
    indices = uniform(total, wanted)
    assert len(set(indices)) == wanted
    assert indices == sorted(indices)
    assert indices[0] == total - 1 - indices[-1] or total % wanted


@pytest.mark.parametrize("selector", SELECTORS)
def test_frames_are_distinct_ascending_and_there(selector: str) -> None:
    torch.manual_seed(0)
    for total in range(1, 14):
        for wanted in range(1, total + 1):
            rows = SELECTORS[selector](total, wanted, 2)
            assert rows.shape == (2, wanted)
            assert rows.dtype == torch.int64
            for row in rows.tolist():
                assert row == sorted(set(row))
                assert row[0] >= 0
                assert row[-1] < total


def test_random_frames_differ_among_items_and_follow_the_seed() -> None:
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(SELECTORS["random"](20, 5, 400))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len({tuple(row) for row in draws[0].tolist()}) > 390
    counts = torch.bincount(draws[0].flatten(), minlength=20)
    assert counts.min() > 60, "each frame is expected 100 times; 60 is more than four deviations away"
    assert counts.max() < 140


@pytest.mark.parametrize("selector", RULES)
def test_selected_features_are_the_frames_of_the_list(selector: str) -> None:
    features = torch.randn(3, 11, 4, generator=torch.Generator().manual_seed(0))
    wanted = SELECTORS[selector](11, 5, 1)[0].tolist()
    assert torch.equal(select_frames(features, 5, selector), features[:, wanted])
    assert select_frames(features, 11, selector) is features


def test_random_features_are_whole_frames_of_their_own_sequence() -> None:
    torch.manual_seed(3)
    features = torch.arange(2 * 9 * 3).reshape(2, 9, 3).float()
    chosen = select_frames(features, 4, "random")
    for item in range(2):
        frames = [int(row[0]) // 3 - 9 * item for row in chosen[item]]
        assert frames == sorted(set(frames))
        assert torch.equal(chosen[item], features[item, frames])


def test_what_cannot_be_selected_is_a_sentence() -> None:
    features = torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match=r"wants 4 frames, but the sequence has 3; lower space\.frames"):
        select_frames(features, 4, "uniform")
    with pytest.raises(ValueError, match="unknown frame selector 'best'; choose from uniform, random"):
        select_frames(features, 2, "best")
