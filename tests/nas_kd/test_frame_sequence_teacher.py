"""The teacher of frame features: one net, any number of frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas_kd.search_spaces import count_flops
from nas_kd.teachers.frame_sequence import build_frame_sequence

SMALL: dict[str, dict[str, Any]] = {
    "h_rnn": {"lower": 5, "upper": 6, "block_length": 4},
    "net_vlad": {"clusters": 3, "hidden": 6},
    "nextvlad": {"clusters": 3, "groups": 4, "expansion": 2, "hidden": 6, "reduction": 2, "dropout": 0.25},
}


@pytest.mark.parametrize("head", ["linear", "moe"])
@pytest.mark.parametrize("family", SMALL)
def test_it_reads_sequences_of_any_length(family: str, head: str) -> None:
    net = build_frame_sequence(3, {"feature_size": 8, "family": family, "head": head, family: SMALL[family]}).eval()
    for frames in (1, 4, 11):
        x = torch.randn(2, frames, 8, generator=torch.Generator().manual_seed(frames))
        encoding = net.get_submodule("encoder")(x)
        assert encoding.shape == (2, 6)
        logits = net(x)
        assert logits.shape == (2, 3)
        assert torch.equal(net.get_submodule("head")(encoding), logits)
        torch.testing.assert_close(net(x[:1]), logits[:1], rtol=1e-4, atol=1e-5)


def test_the_default_is_that_of_the_paper() -> None:
    net = build_frame_sequence(7, {"feature_size": 16})
    assert net.get_parameter("encoder.lower.weight_state").shape == (4, 1024, 1024)
    assert net.get_parameter("encoder.upper.weight_in").shape == (4, 1024, 1024)
    assert net.get_parameter("head.gates.weight").shape == (3 * 7, 1024)
    frames, d, h, blocks = 40, 16, 1024, 2
    expected = 4 * h * (frames * d + (frames - blocks) * h) + 4 * h * (blocks * h + (blocks - 1) * h) + h * 7 * 5
    assert count_flops(net, torch.zeros(1, frames, d)).total == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"family": "lstm"}, "'h_rnn', 'net_vlad' or 'nextvlad'"),
        ({"net_vlad": {"clusters": 4}}, "net_vlad holds options, but family is h_rnn; name net_vlad in family"),
        ({"family": "nextvlad", "nextvlad": {"groups": 3}}, r"3 does not divide 2 · 8 = 16"),
        ({"family": "nextvlad", "nextvlad": {"hidden": 12}}, "multiple of reduction, 8, but 12 is not"),
        ({"h_rnn": {"lower": 0}}, "greater than or equal to 1"),
        ({"cells": 3}, "cells"),
    ],
)
def test_settings_that_make_no_teacher_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_frame_sequence(3, {"feature_size": 8, **settings})
