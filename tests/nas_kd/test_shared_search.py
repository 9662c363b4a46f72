"""One search for a whole campaign: penalty and knobs as functions of the budget, and the trials that come out of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nas_kd.campaign import Campaign, CampaignResult
from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.preparation.shared import _outdated
from nas_kd.runs import export, table
from nas_kd.search_spaces import BUDGET_SHARE, ArchSpec, Choices, ModuleSpace
from nas_kd.search_spaces.shared import SharedSupernet
from nas_kd.training.budget import BudgetPenalty
from nas_kd.training.shared_search import KnobPolicy
from nas_kd.trial import SharedSearch, build_context

KNOTS = [2_100.0, 8_400.0]


def net(choose: Choices) -> nn.Module:
    width = choose.number("width", (2, 8))
    return nn.Sequential(choose.layer(nn.Conv2d, 3, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture(scope="module")
def shared() -> SharedSupernet:
    space = ModuleSpace(
        net, lambda knobs: torch.zeros(1, 3, int(knobs["side"]), int(knobs["side"])), knobs={"side": (12, 16, 32)}
    )
    return SharedSupernet(space, [{"side": 12}, {"side": 16}, {"side": 32}], KNOTS)


def test_the_weight_of_the_penalty_is_a_function_of_the_budget(shared: SharedSupernet) -> None:
    penalty = BudgetPenalty(shared, rate=1.0, stiffness=2.0)
    shared.condition(1, 4_200.0)  # halfway between the knots
    target = 4_200.0 * (1 + BUDGET_SHARE) / 2
    expected = torch.tensor(1.5 * target, dtype=torch.float64)
    gap = math.log(1.5)
    assert float(penalty.penalty(expected)) == pytest.approx(gap**2)  # λ is 0 at first: ρ / 2 · g²
    penalty.update(expected)
    assert penalty.weights[1].tolist() == pytest.approx([gap / 2, gap / 2])
    assert penalty.weights[[0, 2]].abs().sum() == 0
    assert float(penalty.penalty(expected)) == pytest.approx(gap / 2 * gap + gap**2)
    shared.condition(1, 2_100.0)
    assert penalty.weight() == pytest.approx(gap / 2)
    shared.condition(0, 4_200.0)
    assert penalty.weight() == 0


def test_knobs_follow_the_difference_of_two_losses_and_leave_out_what_no_budget_reaches(
    shared: SharedSupernet,
) -> None:
    policy = KnobPolicy([shared])
    assert shared.cost_ranges[2][0] > KNOTS[0]
    assert policy.probabilities(KNOTS[0]).tolist() == pytest.approx([0.5, 0.5, 0])
    assert 2 not in {i for _ in range(20) for i in policy.draw(KNOTS[0], 2, torch.Generator().manual_seed(_))}
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    policy.surrogate(KNOTS[0], 0, 1, 0.8).backward()  # type: ignore[no-untyped-call]  # the first has the higher loss
    optimizer.step()
    first, second, _ = policy.probabilities(KNOTS[0]).tolist()
    assert second - first == pytest.approx(math.tanh(0.4))  # each logit moves by half the difference
    assert policy.probabilities(KNOTS[1]).tolist() == pytest.approx([1 / 3] * 3)  # another knot has logits of its own


def shared_config(tiny: Callable[..., CampaignConfig], **changes: Any) -> CampaignConfig:
    return tiny(
        search={"shared": True, "paths": 1, "candidates": 2, "finish": 0.5, "gates": {"knots": 2}}, trials=3, **changes
    )


def test_a_campaign_with_a_shared_search(shared_run: CampaignResult, tmp_path: Path) -> None:
    config, result = shared_run.config, shared_run
    params = [record.cost.params for record in result.records if record.cost is not None]
    assert len(params) == 3
    assert max(params) <= 1_200  # of random architectures within the budget most have more
    assert [record.state for record in result.records] == ["complete"] * 3
    left = json.loads((config.run_dir / "search" / "search.json").read_text())
    assert [entry["budget"] for entry in left["budgets"]] == [150_000, 250_000]
    for entry, record in zip(left["budgets"], result.records, strict=False):  # derived students come first
        assert record.arch_id == ArchSpec.from_dict(entry["arch"]).arch_id
        assert record.cost is not None
        assert record.cost.flops == entry["cost"] <= entry["budget"]
        assert sum(knobs["probability"] for knobs in entry["knobs"]) == pytest.approx(1, abs=1e-5)
        assert all(sum(p) == pytest.approx(1, abs=1e-5) for p in entry["gates"].values())
        assert entry["arch_id"] == record.arch_id
        depth_2 = entry["gates"]["stages.1.depth"][1]  # of depths 1 and 2
        effect = {name: p for name, p in entry["effect"].items() if p < 1 - 1e-5}
        assert effect == {f"stages.1.cells.1.edges.{edge}": pytest.approx(depth_2) for edge in ("0_1", "0_2", "1_2")}
    assert left["variables"]["stages.1.depth"] == {"choices": [1, 2], "layers": [1, 2]}
    assert left["variables"]["stages.1.width"]["layers"] is None
    assert left["variables"]["stages.0.cells.0.edges.0_2"]["layers"] == [1, 1, 1, 0]  # the last one is `zero`
    history = [json.loads(line) for line in (config.run_dir / "search" / "gates.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1] * (len(history) // 2) + [2] * (len(history) // 2)
    assert {line["budget"] for line in history} >= {150_000, 250_000}
    assert all(sum(p) == pytest.approx(1, abs=1e-3) for line in history for p in line["gates"].values())
    last = result.records[-1]
    assert last.cost is not None
    assert last.cost.flops <= 250_000  # whatever the sampler proposes is within the highest budget
    assert {name for name in last.knobs if name.startswith("arch.")}
    assert "max_flops" not in last.knobs
    made = table(config.run_dir)
    assert {key[made.rows.index("architecture")] for key in made.row_keys} == {r.arch_id for r in result.records}
    assert {*made.rows, *made.columns} <= {"architecture", "resolution"}
    named = table(config.run_dir, ["arch.stages.1.width"], ["resolution"])
    assert {key for (key,) in named.row_keys} == {record.knobs["arch.stages.1.width"] for record in result.records}
    folder, exported = export(config.run_dir, trial=last.number, formats=["safetensors"], out_dir=tmp_path)
    assert exported.flops == last.cost.flops
    assert (folder / "student.safetensors").is_file()


def test_at_the_end_of_a_search_the_gates_are_fixed_and_only_candidates_train(
    tiny: Callable[..., CampaignConfig],
) -> None:
    search = SharedSearch(build_context(shared_config(tiny), "cpu"))  # of its two epochs the second one finishes
    (supernet,) = search.supernets
    names = [name for name, _ in supernet.named_parameters() if "gate_logits" in name]
    fixed, drawn = dict[str, torch.Tensor](), set[str]()

    def log(epoch: int, means: object) -> None:
        if epoch == 0:
            fixed.update({name: supernet.state_dict()[name].clone() for name in names})

    def draw(module: nn.Module, inputs: object, output: object) -> None:
        if fixed:
            index = {name: choice.single for name, choice in supernet.control.draws.items()}
            choices = {n: options[index.get(n) or 0] for n, options in supernet.space.variables.items()}
            drawn.add(supernet.space.arch({**supernet.knobs, **choices}).arch_id)

    supernet.register_forward_hook(draw)
    search.train(log=log)
    assert all(torch.equal(fixed[name], supernet.state_dict()[name]) for name in names)
    wanted = {arch.arch_id for budget in (150_000, 250_000) for arch in search.candidates(budget, 2)}
    assert len(drawn) > 1
    assert drawn <= wanted


def test_probable_architectures_of_all_knobs_are_compared_and_the_best_one_is_derived(
    tiny: Callable[..., CampaignConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SharedSearch(build_context(shared_config(tiny, budget={"max_params": 2_200}), "cpu"))
    generator = torch.Generator().manual_seed(0)
    (supernet,) = search.supernets
    with torch.no_grad():
        for p in supernet.gate_parameters():
            p.normal_(generator=generator)
    of_knobs: list[list[tuple[float, str]]] = []
    for setting in range(2):
        supernet.condition(setting, 150_000)
        archs = supernet.archs(12, 150_000, limits={"params": 2_200})
        of_knobs.append([(supernet.log_probability(arch), arch.arch_id) for arch in archs])
    shares = torch.tensor([-of_knobs[setting][0][0] for setting in range(2)]).softmax(0)
    monkeypatch.setattr(search.policy, "probabilities", lambda budget: shares)  # the best of both are as probable
    joint = [(math.log(float(p)) + s, name) for p, found in zip(shares, of_knobs, strict=True) for s, name in found]
    found = search.candidates(150_000, 12)
    more_probable = int(shares.argmax())
    firsts = [of_knobs[more_probable][0][1], of_knobs[1 - more_probable][0][1]]
    assert [arch.arch_id for arch in found[:2]] == firsts  # one of each combination of knobs
    others = [name for _, name in sorted(joint, reverse=True) if name not in firsts]
    assert [arch.arch_id for arch in found[2:]] == others[:10]
    space = search.context.space
    assert all(space.cost(arch) <= 150_000 and space.figure("params", arch) <= 2_200 for arch in found)
    scores = {arch.arch_id: [0.2, 0.5, 0.1, 0.5][i % 4] for i, arch in enumerate(found)}
    monkeypatch.setattr(search, "inherited_score", lambda arch: scores[arch.arch_id])
    assert search.compare(150_000, 12)[0] == (found[1], 0.5)  # of equal ones the more probable


def test_an_interrupted_search_goes_on_to_the_same_result(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    found = []
    for name, is_interrupted in (("whole", False), ("interrupted", True)):
        config = shared_config(tiny, name=name, objective={"feature": {"weight": 1}})

        def stop(share: float, words: str, is_interrupted: bool = is_interrupted) -> None:
            if is_interrupted and words.startswith("search 2/2"):
                raise KeyboardInterrupt

        with Campaign(config) as campaign:
            if is_interrupted:
                with pytest.raises(KeyboardInterrupt):
                    campaign.prepare(stop)
                assert (config.run_dir / "search" / "checkpoint.pt").is_file()
                campaign.ledger.close()  # type: ignore[union-attr]
            campaign.prepare()
        left, tensors = config.run_dir / "search", load_file(config.run_dir / "search" / "supernet.safetensors")
        adapters = {name: value.tolist() for name, value in tensors.items() if name.startswith("objective.")}
        assert len(adapters) == 2  # of the two scales; students begin with them
        found.append((json.loads((left / "search.json").read_text())["budgets"], adapters))
        assert not (config.run_dir / "search" / "checkpoint.pt").exists()
    assert found[0] == found[1]


def test_a_search_goes_on_with_what_is_still_true_and_is_done_anew_otherwise(
    tiny: Callable[..., CampaignConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = SharedSearch.train

    def count(self: SharedSearch, **options: Any) -> None:
        trained.append(self.tag)
        train(self, **options)

    monkeypatch.setattr(SharedSearch, "train", count)
    notes: list[str] = []

    def prepared(campaign: Campaign) -> tuple[int, list[str]]:
        """How many searches there have been, and what is said of an earlier one."""
        notes.clear()
        campaign.prepare(note=notes.append)
        return len(trained), [text for text in notes if text.startswith(("search: it", "search: the"))]

    def config(*budgets: int, **changes: Any) -> CampaignConfig:
        short = {"retrain": {"epochs": 1}, "space": {"resolution": [16]}, "trials": 1, **changes}
        search = {"shared": True, "paths": 1, "candidates": 1, "epochs": 1}
        return tiny(search=search, budget={"max_flops": list(budgets)}, **short)

    with Campaign(config(150_000, 250_000)) as campaign:
        assert prepared(campaign) == (1, [])
        folder = campaign.run_dir / "search"
    weights = (folder / "supernet.safetensors").read_bytes()

    # Other budgets within the range, and other resources: students come from the same supernet.
    with Campaign(config(200_000, resources={"executor": "inline", "cpus_per_trial": 0.5})) as campaign:
        sentence = (
            "search: the budgets are others, within the range that was searched; its supernet gives their students"
        )
        assert prepared(campaign) == (1, [sentence])
        (record,) = campaign.run().records
    assert (folder / "supernet.safetensors").read_bytes() == weights
    (entry,) = json.loads((folder / "search.json").read_text())["budgets"]
    assert (entry["budget"], entry["arch_id"]) == (200_000, record.arch_id)
    assert record.state == "complete", record.error
    assert record.cost is not None
    assert 0 < record.cost.flops <= 200_000

    # Budgets beyond it: searched anew, and what was there is kept.
    with Campaign(config(300_000)) as campaign:
        sentence = (
            "search: it was done with budgets from 150,000 FLOPs to 250,000 FLOPs, and now they go beyond; it is kept "
            f"in {folder}-1, and the search is done anew"
        )
        assert prepared(campaign) == (2, [sentence])
        assert campaign.ledger is not None
        assert [each.arch_id for each in campaign.ledger.records()] == [record.arch_id]
    assert (folder.with_name("search-1") / "supernet.safetensors").read_bytes() == weights
    known = json.loads((folder / "search.json").read_text())
    assert [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()] == [1]

    # So is it with other settings of what decides it; settings of the trials do not.
    assert _outdated(known, config(300_000, retrain={"epochs": 3}, trials=9)) == ""
    assert _outdated(known, config(300_000, space={"resolution": [12, 16]})) == "other settings (space)"
    longer = config(300_000).model_copy(update={"search": config(300_000).search.model_copy(update={"epochs": 2})})
    assert _outdated(known, longer) == "other settings (search)"


def test_what_cannot_vary_within_one_search_is_refused(tiny: Callable[..., CampaignConfig]) -> None:
    knob = {"search.lr": {"type": "float", "low": 0.001, "high": 0.01}}
    for changes, words in (
        ({"knobs": knob}, r"knobs\.search\.lr: all trials share one search"),
        ({"grid": [{"max_flops": "150k", "resolution": 16}]}, r"search\.shared: the cells of a grid"),
    ):
        with Campaign(shared_config(tiny, **changes)) as campaign, pytest.raises(ConfigError, match=words):
            campaign.prepare()
