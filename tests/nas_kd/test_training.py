from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from nas_kd.config import CampaignConfig
from nas_kd.data import Batch
from nas_kd.preparation.nets import num_batches
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.search_spaces import CostTable, CostTerm, Gate, Supernet
from nas_kd.search_spaces.knapsack import cost_range
from nas_kd.training.budget import BudgetController
from nas_kd.training.fit import fit
from nas_kd.training.gate_search import search_gates
from nas_kd.training.precision import Precision
from nas_kd.training.settings import FitConfig, TrainingConfig
from nas_kd.training.steps import LaterCheck, NotFiniteError, learning_rate, make_optimizer
from nas_kd.trial import CampaignContext, Learner, build_context


class Killed(BaseException):
    """Stands for a kill in the middle of an epoch."""


@pytest.fixture
def context(tiny: Callable[..., CampaignConfig]) -> CampaignContext:
    return build_context(tiny(), "cpu")


def die_at(step: int) -> Callable[[float, str], None]:
    left = [step]

    def progress(share: float, words: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return progress


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "keys", [{}, {"optimizer": "sgd"}, {"accumulate": 4, "ema": 0.9, "keep": "best", "patience": 2}], ids=str
)
def test_fit_continues_bit_by_bit(context: CampaignContext, tmp_path: Path, keys: dict[str, Any]) -> None:
    config = TrainingConfig(epochs=3, batch_size=8, lr=0.01, **keys)

    def run(path: Path | None, progress: Callable[[float, str], None] = lambda a, b: None) -> nn.Module:
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(3 * 4 * 16 * 16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        )
        loader = context.loader(context.splits.retrain, config, seed=2, train=True)
        fit(
            net,
            loader,
            lambda batch: {"task": context.task.loss(net(context.input_type.read(batch)), batch)},
            lambda terms: terms["task"],
            config,
            seed=2,
            validate=lambda: float(net[4].weight.detach().abs().sum()),
            checkpoint=path,
            tag="t",
            progress=progress,
        )
        return net

    whole = run(None)
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", die_at(9))  # in the second epoch of six steps
    assert same(run(tmp_path / "c.pt"), whole)


class Recorded:
    """A linear net that is trained on six batches of eight clips; keeps its weights after every batch."""

    def __init__(self, context: CampaignContext, scores: Sequence[float] = (), **keys: Any) -> None:
        config = TrainingConfig(batch_size=keys.pop("batch_size", 8), optimizer="sgd", lr=0.05, warmup=0, **keys)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 16 * 16, 4))
        left = iter(scores)
        self.weights = [net[1].weight.detach().clone()]
        self.epochs = fit(
            net,
            context.loader(context.splits.retrain, config, seed=2, train=True),
            lambda batch: {"task": context.task.loss(net(context.input_type.read(batch)), batch)},
            lambda terms: terms["task"],
            config,
            seed=2,
            validate=lambda: next(left),
            progress=lambda share, words: self.weights.append(net[1].weight.detach().clone()),
        )
        self.left = net[1].weight.detach()


def test_gradients_of_several_batches_make_one_step(context: CampaignContext) -> None:
    several = Recorded(context, epochs=1, accumulate=4, schedule="constant")
    changed = [not torch.equal(a, b) for a, b in pairwise(several.weights)]
    assert changed == [False, False, False, True, False, True]  # four batches, and the two that are left
    one = Recorded(context, epochs=1, batch_size=32, schedule="constant")  # clips in the same order
    torch.testing.assert_close(several.weights[4], one.weights[1])


@pytest.mark.parametrize(("epochs", "accumulate"), [(1, 1), (2, 4), (3, 7)])
def test_steps_of_a_training_are_those_of_its_optimizer(
    context: CampaignContext, monkeypatch: pytest.MonkeyPatch, epochs: int, accumulate: int
) -> None:
    taken, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: taken.append(step(self)))
    Recorded(context, epochs=epochs, accumulate=accumulate)
    assert TrainingConfig(epochs=epochs, accumulate=accumulate).num_steps(6) == len(taken)
    assert num_batches(context, TrainingConfig(epochs=epochs, batch_size=8, accumulate=accumulate)) == 6 * epochs


def test_the_average_of_the_weights_is_left(context: CampaignContext) -> None:
    net = Recorded(context, epochs=1, ema=0.8)
    average = net.weights[0]
    for weight in net.weights[1:]:
        average = 0.8 * average + 0.2 * weight
    torch.testing.assert_close(net.left, average)


def test_the_best_epoch_is_kept_and_patience_ends_a_training(context: CampaignContext) -> None:
    net = Recorded(context, epochs=9, keep="best", patience=2, scores=[0.1, 0.2, 0.5, 0.3, 0.5])
    assert net.epochs == 2
    assert len(net.weights) == 1 + 4 * 6  # the score of the start, and four epochs
    assert torch.equal(net.left, net.weights[2 * 6])
    start = Recorded(context, epochs=2, keep="best", scores=[0.9, 0.2, 0.5])
    assert start.epochs == 0
    assert torch.equal(start.left, start.weights[0])
    with pytest.raises(ValidationError, match=r"patience needs .* add `keep: best`"):
        TrainingConfig(patience=2)


def search(
    context: CampaignContext,
    checkpoint: Path | None,
    progress: Callable[[float, str], None] = lambda a, b: None,
    **spy: Any,
) -> tuple[Supernet, BudgetController]:
    torch.manual_seed(0)
    supernet = Supernet(context.space, seed=3)
    with supernet.pinned(context.space.widest(supernet.knobs)):
        learner = Learner(context, supernet, context.config.objective, supernet.knobs, cached=False, varying=True)
    budget = BudgetController(200_000)
    config = context.config.search
    search_gates(
        supernet,
        learner.objective,
        spy.get("loss", lambda batch: learner.loss(batch)),
        context.loader(context.splits.weights, config, seed=3, train=True),
        context.loader(context.splits.gates, config, seed=4, train=True),
        budget,
        config,
        config.gates,
        seed=3,
        checkpoint=checkpoint,
        progress=progress,
    )
    learner.close()
    return supernet, budget


def test_gate_search_continues_bit_by_bit(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    context = build_context(tiny(search={"epochs": 3, "gates": {"warmup": 0.0}}), "cpu")
    whole, budget = search(context, None)
    with pytest.raises(Killed):
        search(context, tmp_path / "c.pt", die_at(7))
    again, controller = search(context, tmp_path / "c.pt")
    assert same(again, whole)
    assert controller.state_dict() == budget.state_dict()


def test_weights_and_gates_train_on_their_own_splits(tiny: Callable[..., CampaignConfig]) -> None:
    context = build_context(tiny(search={"epochs": 1, "gates": {"warmup": 0.0}}), "cpu")
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    torch.manual_seed(0)
    supernet = Supernet(context.space, seed=3)
    with supernet.pinned(context.space.widest(supernet.knobs)):
        learner = Learner(context, supernet, context.config.objective, supernet.knobs, cached=False, varying=True)
    gate, weight = supernet.gate_parameters()[0], supernet.weight_parameters()[0]

    def loss(batch: Batch) -> Any:
        assert gate.requires_grad != weight.requires_grad
        seen[gate.requires_grad] |= set(batch["index"].tolist())
        return learner.loss(batch)

    config = context.config.search
    loaders = [context.loader(s, config, seed=0, train=True) for s in (context.splits.weights, context.splits.gates)]
    budget = BudgetController(200_000)
    search_gates(supernet, learner.objective, loss, loaders[0], loaders[1], budget, config, config.gates, seed=0)
    assert seen[False] == set(context.splits.weights.indices)
    assert seen[True] == set(context.splits.gates.indices)
    assert not seen[True] & seen[False]


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_controller_meets_its_target_from_above_and_below(share: float) -> None:
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(6)]
    gates = {name: Gate(("a", "b", "c", "d")) for name in names}
    terms = tuple(CostTerm(n, (n,), np.sort(rng.integers(1_000, 250_000, 4)).astype(np.int64)) for n in names)
    table = CostTable({n: gates[n].choices for n in names}, terms, 0)
    least, most = cost_range(table)
    target = least + share * (most - least)
    wanted = torch.tensor(rng.normal(size=(6, 4)))  # a task that prefers some candidates
    budget = BudgetController(target)
    optimizer = torch.optim.Adam([g.gate_logits for g in gates.values()], lr=8 / 600)
    for step in range(600):
        probabilities = {n: gates[n].probabilities() for n in names}
        expected = table.expected(probabilities)
        budget.advance(step / 600, expected)
        task = -sum((wanted[i] * probabilities[n].double()).sum() for i, n in enumerate(names))
        optimizer.zero_grad()
        (task + budget.penalty(expected)).backward()
        optimizer.step()
        budget.update(expected)
    reached = table.expected({n: gates[n].probabilities() for n in names}).item()
    assert reached == pytest.approx(budget.target, rel=0.05)
    assert 0.95 * target <= budget.target <= target


def test_learning_rate_rises_and_falls() -> None:
    config = FitConfig(lr=1.0, warmup=0.1)
    assert learning_rate(config, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.1) == pytest.approx(1.0)
    assert learning_rate(config, 0.55) == pytest.approx(0.5)
    assert learning_rate(config, 1.0) == pytest.approx(0.0, abs=1e-9)


def test_schedules_of_the_learning_rate() -> None:
    def rates(schedule: Any, places: Sequence[float]) -> list[float]:
        return [learning_rate(FitConfig(lr=2.0, warmup=0.2, schedule=schedule), place) for place in places]

    places = [0.1, 0.2, 0.49, 0.5, 0.74, 0.75, 1.0]
    assert rates("constant", places) == pytest.approx([1, 2, 2, 2, 2, 2, 2])
    assert rates("step", places) == pytest.approx([1, 2, 2, 0.2, 0.2, 0.02, 0.02])
    assert rates("linear", [0.1, 0.2, 0.6, 1.0]) == pytest.approx([1, 2, 1, 0])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2.0, total_steps=101, pct_start=0.21, final_div_factor=1e9
    )
    expected = []
    for _ in range(101):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        one_cycle.step()
    steps = [10, 20, 40, 100]
    assert rates("one_cycle", [step / 100 for step in steps]) == pytest.approx([expected[i] for i in steps], abs=0.02)


def test_a_loss_that_is_no_number_is_named(context: CampaignContext) -> None:
    net = nn.Linear(1, 1)
    config = TrainingConfig(epochs=1, batch_size=8)
    loader = context.loader(context.splits.retrain, config, seed=0, train=True)
    with pytest.raises(FloatingPointError, match=r"task=nan.*lower the learning rate"):
        fit(net, loader, lambda b: {"task": net.weight.sum() * float("nan")}, lambda t: t["task"], config, seed=0)


def test_losses_on_a_gpu_are_looked_at_one_step_later() -> None:
    check, good, bad = LaterCheck("the test"), torch.tensor(1.0), torch.tensor(float("inf"))
    check.add(bad, {"task": bad}, at_once=False)  # as on a GPU
    with pytest.raises(NotFiniteError, match=r"the loss of the test .*task=inf"):
        check.add(good, {"task": good}, at_once=False)
    check.add(bad, {"task": bad}, at_once=False)
    with pytest.raises(NotFiniteError):
        check.finish()  # the last one of an epoch
    with pytest.raises(NotFiniteError):
        check.add(bad, {"task": bad})  # on a CPU


def test_bfloat16_is_close_to_float32_and_leaves_weights_and_losses_in_float32(
    tiny: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    config = tiny(teacher={"fit": {"epochs": 1, "precision": "bfloat16"}})
    context = build_context(config, "cpu")
    prepare_teacher(context, tmp_path)  # trains the teacher in bfloat16
    supernet = Supernet(context.space, seed=0)
    arch = supernet.arch(max_cost=250_000)
    knobs = {name: arch.choices[name] for name in context.space.knobs}
    batch = next(context.loader(context.splits.retrain, config.retrain, seed=0, train=True).epoch(0))
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    terms, gradients = [], []
    for precision in precisions:
        torch.manual_seed(0)
        net = context.space.student(arch).train()
        with closing(
            Learner(context, net, config.search.objective, knobs, cached=False, precision=precision)
        ) as learner:
            losses = learner.loss(batch)
            learner.objective.total(losses).backward()  # type: ignore[no-untyped-call]
        terms.append({name: float(value.detach()) for name, value in losses.items()})
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        assert {value.dtype for value in losses.values()} == {torch.float32}
        assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert len(terms[0]) > 1
    assert terms[0] == pytest.approx(terms[1], rel=0.02)
    assert terms[0] != terms[1]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_complex_parameters_train(optimizer: Any) -> None:
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    steps = make_optimizer(TrainingConfig(optimizer=optimizer, weight_decay=0, lr=0.1), [weight])
    weight.abs().sum().backward()
    steps.step()
    assert (weight.real < 0.95).all()
    assert (weight.imag == 0).all()
