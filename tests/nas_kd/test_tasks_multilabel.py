from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from nas_kd.data import DataInfo, MemoryDataset, make_splits
from nas_kd.tasks import Multilabel, MultilabelConfig, make_task
from nas_kd.tasks.multilabel_metrics import (
    average_precision,
    global_average_precision,
    mean_average_precision,
    mean_average_precision_of_top,
)
from nas_kd.tasks.occurring import no_item_of


def info(classes: int = 3, multi_label: bool = True) -> DataInfo:
    names = tuple(f"c{index}" for index in range(classes))
    return DataInfo(classes, names, 4, 0, 0, "toy", feature_size=5, multi_label=multi_label)


def batch(*rows: list[int]) -> dict[str, torch.Tensor]:
    return {"labels": torch.tensor(rows, dtype=torch.uint8)}


def random_split(items: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, classes, generator=generator)
    labels = (torch.rand(items, classes, generator=generator) < 0.2).to(torch.uint8)
    labels[:, -1] = 0  # a class that nobody has
    return logits, labels


def slow_gap(logits: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    """The words of the definition, one prediction at a time; without ties."""
    pool = []
    for row, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda c: -row[c])[:k]
        pool += [(row[c], truth[c]) for c in best]
    found, total = 0, 0.0
    for rank, (_, right) in enumerate(sorted(pool, key=lambda pair: -pair[0]), start=1):
        if right:
            found += 1
            total += found / rank
    return total / int(labels.sum())


def slow_top_map(logits: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    values = []
    for c in range(labels.shape[1]):
        if not labels[:, c].any():
            continue
        kept = [i for i in range(len(logits)) if (logits[i] > logits[i, c]).sum() < k]
        found, total = 0, 0.0
        for rank, i in enumerate(sorted(kept, key=lambda i: -float(logits[i, c])), start=1):
            if labels[i, c]:
                found += 1
                total += found / rank
        values.append(total / int(labels[:, c].sum()))
    return sum(values) / len(values)


def test_average_precision_by_hand() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7])
    hits = np.array([True, True, False, False])
    assert average_precision(scores, hits, 2) == pytest.approx((1 + 2 / 4) / 2)
    assert average_precision(scores, hits, 4) == pytest.approx((1 + 2 / 4) / 4)  # two that were never ranked
    assert average_precision(np.full(4, 0.5), hits, 2) == pytest.approx(0.5)  # one step: precision 2 of 4
    assert average_precision(np.array([np.nan, 0.0]), np.array([True, False]), 1) == pytest.approx(0.5)
    assert average_precision(np.empty(0), np.empty(0, dtype=bool), 3) == 0.0
    with pytest.raises(ValueError, match="at least one positive, but there are 0"):
        average_precision(scores, hits, 0)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40).filter(
        lambda x: any(h for _, h in x)
    )
)
def test_average_precision_with_ties_is_that_of_sklearn(pairs: list[tuple[int, bool]]) -> None:
    scores, hits = np.array([float(s) for s, _ in pairs]), np.array([h for _, h in pairs])
    assert average_precision(scores, hits, int(hits.sum())) == pytest.approx(average_precision_score(hits, scores))
    order = np.random.default_rng(len(pairs)).permutation(len(pairs))
    assert average_precision(scores[order], hits[order], int(hits.sum())) == average_precision(
        scores, hits, int(hits.sum())
    )


def test_metrics_by_hand() -> None:
    task = Multilabel(info(), MultilabelConfig(top_k=1))
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    truth = batch([1, 0, 1], [0, 0, 1])
    task.update(logits, truth)
    values = task.compute()
    # Pooled: 3.0 right, 2.0 wrong; of three positives one is found, at rank 1.
    assert values["gap"] == pytest.approx(1 / 3)
    # Class 0: rank 1 of 2. Class 2: both items have it. Class 1 has no positive.
    assert values["map"] == pytest.approx(1.0)
    assert values["hit1"] == 0.5
    softplus = [math.log1p(math.exp(x)) for x in (-3.0, 1.0, 0.0, 0.0, 2.0, -1.0)]
    assert values["binary_cross_entropy"] == pytest.approx(sum(softplus) / 2, rel=1e-6)
    assert float(task.loss(logits, truth)) == pytest.approx(sum(softplus) / 2, rel=1e-6)


@pytest.mark.parametrize("k", [1, 4, 20])
def test_metrics_are_those_of_slow_twins_over_any_batches(k: int) -> None:
    logits, labels = random_split(57, 9)
    results = []
    for size in (57, 10):
        for over in ("all", "top"):
            task = Multilabel(info(9), MultilabelConfig(top_k=k, map_over=over))
            for start in range(0, 57, size):
                task.update(logits[start : start + size], {"labels": labels[start : start + size]})
            results.append(task.compute())
    for values in results:
        assert values["gap"] == pytest.approx(slow_gap(logits, labels, k), rel=1e-6)
    for all_of_them, top in (results[:2], results[2:]):
        there = average_precision_score(labels[:, :-1].numpy(), logits[:, :-1].numpy(), average="macro")
        assert all_of_them["map"] == pytest.approx(there, rel=1e-6)
        assert top["map"] == pytest.approx(slow_top_map(logits, labels, k), rel=1e-6)
        assert (top["map"] == pytest.approx(all_of_them["map"])) == (k == 20)
    hits = [bool(labels[i, row.argmax()]) for i, row in enumerate(logits)]
    assert results[0]["hit1"] == sum(hits) / 57


def test_gap_keeps_positives_beyond_k_in_its_total() -> None:
    """As the published evaluation does: an item with 25 classes can reach 20/25 at most."""
    task = Multilabel(info(30))
    truth = torch.zeros(1, 30, dtype=torch.uint8)
    truth[:, :25] = 1
    task.update(truth * 2.0 - 1.0, {"labels": truth})
    values = task.compute()
    assert values["gap"] == pytest.approx(20 / 25)
    assert values["map"] == values["hit1"] == 1.0


def test_a_perfect_ranking_gets_one_and_scores_need_one_scale_for_gap() -> None:
    labels = torch.tensor([[1, 0], [1, 0]], dtype=torch.uint8)
    task = Multilabel(info(2))
    task.update(torch.tensor([[1.0, -1.0], [9.0, 8.0]]), {"labels": labels})
    shifted = task.compute()
    assert shifted["map"] == 1.0
    assert shifted["gap"] == pytest.approx((1 + 2 / 3) / 2)  # 9 right, 8 wrong, 1 right
    task.update(torch.tensor([[1.0, -1.0], [9.0, 0.0]]), {"labels": labels})
    assert task.compute()["gap"] == 1.0


def test_computing_clears_and_nothing_to_count_is_a_sentence() -> None:
    task = Multilabel(info())
    with pytest.raises(ValueError, match="at least one item with a class"):
        task.compute()
    task.update(torch.zeros(1, 3), batch([0, 0, 0]))
    with pytest.raises(ValueError, match="at least one item with a class"):
        task.compute()
    task = Multilabel(info())
    task.update(torch.tensor([[1.0, 0.0, 0.0]]), batch([1, 0, 0]))
    assert task.compute()["gap"] == 1.0
    task.update(torch.tensor([[0.0, 1.0, 0.0]]), batch([1, 0, 0]))
    assert task.compute()["hit1"] == 0.0


def test_loss_has_the_gradient_of_the_closed_form() -> None:
    logits, labels = random_split(4, 3)
    logits.requires_grad_()
    Multilabel(info()).loss(logits, {"labels": labels}).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().sigmoid() - labels) / 4)


def test_classes_that_a_measured_split_lacks_are_named() -> None:
    def items(*labels: list[int]) -> MemoryDataset:
        features = torch.zeros(len(labels), 4, 5)
        label = torch.zeros(len(labels), dtype=torch.int64)
        return MemoryDataset({"features": features, "label": label, "labels": torch.tensor(labels, dtype=torch.uint8)})

    every, task = items([1, 1, 0], [0, 0, 1]), make_task("multilabel", info(), {})
    part, known = items([0, 1, 0]), items([0, 0, 0])
    known.item_classes = [(0, 2), ()]  # type: ignore[attr-defined]
    names = info().class_names
    assert task.hints(make_splits(every, part, known, info(), seed=0)) == [
        f"data: no item of {names[0]}, {names[2]} in val; map leaves them out",
        f"data: no item of {names[1]} in test; map leaves it out",
    ]
    (sentence,) = no_item_of([0], [f"c{number}" for number in range(12)], "val", "map leaves")
    assert sentence.startswith(
        "data: no item of 11 classes (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, …) in val; map le"
    )


def test_unfit_data_options_and_outputs_are_sentences() -> None:
    assert isinstance(make_task("multilabel", info(), {"map_over": "top"}), Multilabel)
    with pytest.raises(ValueError, match="choose the task classification"):
        make_task("multilabel", info(multi_label=False), {})
    with pytest.raises(ValueError, match="choose the task multilabel"):
        make_task("classification", info(), {})
    with pytest.raises(ValueError, match="task_options"):
        make_task("multilabel", info(), {"top_k": 0})
    with pytest.raises(ValueError, match=r"\(1, 3\), but the model gives \(1, 2\)"):
        Multilabel(info()).loss(torch.zeros(1, 2), batch([1, 0, 0]))
    for mean in (
        lambda: mean_average_precision(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool)),
        lambda: mean_average_precision_of_top(
            np.zeros((2, 1)),
            np.zeros((2, 1), dtype=np.int64),
            np.zeros((2, 1), dtype=bool),
            np.zeros(2, dtype=np.int64),
        ),
    ):
        with pytest.raises(ValueError, match="a class with a positive"):
            mean()
    assert global_average_precision(np.zeros((1, 2)), np.array([[True, False]]), 1) == 0.5
