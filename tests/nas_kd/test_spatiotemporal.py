from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from commands import succeed
from torch import Tensor, nn

from nas_kd.config import CampaignConfig
from nas_kd.data import IGNORE, DataInfo
from nas_kd.objectives import DistillationLoss, ObjectiveConfig
from nas_kd.search_spaces import SPACES
from nas_kd.taps import ModelOutput, Taps
from nas_kd.tasks import Classification, Saliency, Task
from nas_kd.teachers.saliency import build_saliency_teacher

INFO = DataInfo(
    num_classes=2, class_names=("a", "b"), frames=2, height=32, width=32, name="s", mask_names=("none", "seen")
)
TRUNK = {"widths": [[4], [4], [4], [4]], "depths": [1], "ops": ["conv_k1"]}
TINY_SPACE: dict[str, Any] = {
    "side": [32],
    "spatial": TRUNK,
    "temporal": TRUNK,
    "decoder": {"widths": [[4], [4], [4], [4], [4]], "ops": ["conv_k1"]},
}


def student(kind: str) -> nn.Module:
    torch.manual_seed(0)
    space = SPACES["saliency"].make({"net": [kind], **TINY_SPACE})
    return space.student(space.widest(space.knobs_with({})))


class Case:
    """A student, a teacher of two branches, and the objective."""

    def __init__(
        self,
        kind: str,
        *,
        info: DataInfo = INFO,
        net: nn.Module | None = None,
        task: Task | None = None,
        more: dict[str, Any] | None = None,
        **term: Any,
    ) -> None:
        self.net = net or student(kind)
        self.teacher = build_saliency_teacher(1, {"widths": [4, 4], "depth": 1}).eval().requires_grad_(False)
        torch.manual_seed(1)
        self.clip = torch.randn(2, 3, 2, 32, 32)
        self.batch = {"mask": (torch.rand(2, 2, 32, 32) > 0.7).to(torch.uint8)}
        self.task = Saliency(info)
        terms = {"feature": {"weight": 0}, "spatiotemporal": {"weight": 1, **term}, **(more or {})}
        config = ObjectiveConfig.model_validate(terms)
        self.objective = DistillationLoss(
            config, task or self.task, self.net, self.teacher, self.clip[:1], self.clip[:1]
        )

    def answers(self) -> tuple[ModelOutput, ModelOutput]:
        with (
            Taps(self.net, self.objective.student_taps) as ours,
            Taps(self.teacher, self.objective.teacher_taps) as theirs,
        ):
            return ours(self.clip), theirs(self.clip)

    def terms(self) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(*self.answers(), self.batch)
        return terms


def names(*branches: str) -> set[str]:
    return {f"spatiotemporal.{branch}_{kind}" for branch in branches for kind in ("soft", "hard")}


@pytest.mark.parametrize("branch", ["spatial", "temporal"])
def test_one_branch_learns_its_teachers_map_and_the_labels_all_the_time(branch: str) -> None:
    case = Case(branch, soft_share=0.3, weight=2)
    assert case.objective.teacher_taps == (branch,)
    assert not list(case.objective.parameters())  # its own decoder is the one that is trained
    for progress in (0.0, 0.9):
        case.objective.advance(progress)
        terms, (ours, _) = case.terms(), case.answers()
        assert set(terms) == names(branch)
        soft = (ours.logits - case.teacher.branches(case.clip)[branch]).square().mean()
        hard = (ours.logits - case.batch["mask"][:, :1].float()).square().mean()
        assert torch.allclose(terms[f"spatiotemporal.{branch}_soft"], soft)
        assert torch.allclose(terms[f"spatiotemporal.{branch}_hard"], hard)
        assert torch.allclose(case.objective.total(terms), 2 * (0.3 * soft + 0.7 * hard))
    assert all(p.requires_grad for p in case.net.parameters())


def test_both_branches_learn_through_decoders_of_their_own_first() -> None:
    case = Case("fused", soft_share=0.25, fusion_share=0.5)
    case.objective.eval()
    case.objective.advance(0.49)
    terms, (ours, theirs) = case.terms(), case.answers()
    assert set(terms) == names("spatial", "temporal")
    heads = case.objective.parts["spatiotemporal"].heads
    expected = torch.zeros(())
    for branch in ("spatial", "temporal"):
        made = heads[branch](ours.features[branch])  # type: ignore[index,operator]
        soft = (made - theirs.features[branch]).square().mean()
        hard = (made - case.batch["mask"][:, :1].float()).square().mean()
        assert torch.allclose(terms[f"spatiotemporal.{branch}_soft"], soft)
        expected = expected + 0.25 * soft + 0.75 * hard
    total = case.objective.total(terms)
    assert torch.allclose(total, expected)
    first, second = (next(heads[name].parameters()) for name in ("spatial", "temporal"))  # type: ignore[index,union-attr]
    assert first is not second
    total.backward()  # type: ignore[no-untyped-call]
    learns = {name.split(".")[0] for name, p in case.net.named_parameters() if p.grad is not None}
    assert learns == {"spatial", "temporal"}  # and not the decoder that fuses them
    assert all(p.grad is not None for p in case.objective.parameters())
    assert all(p.grad is None for p in case.teacher.parameters())


def test_then_the_trunks_are_frozen_and_the_task_decides() -> None:
    case = Case("fused", fusion_share=0.25)
    case.net.train()
    case.objective.advance(0.74)
    trunks = [case.net.get_submodule(name) for name in ("spatial", "temporal")]
    assert all(trunk.training and all(p.requires_grad for p in trunk.parameters()) for trunk in trunks)
    before = [b.clone() for trunk in trunks for b in trunk.buffers()]
    case.net(case.clip)
    assert not all(torch.equal(a, b) for a, b in zip(before, buffers(trunks), strict=True))

    case.net.train()
    case.objective.advance(0.75)
    before = [b.clone() for b in buffers(trunks)]
    assert not case.objective.uses_teacher
    ours = case.answers()[0]
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, buffers(trunks), strict=True))
    terms = case.objective(ours, None, case.batch)
    assert set(terms) == {"task"}
    assert torch.allclose(terms["task"], case.task.loss(ours.logits, case.batch))
    case.objective.total(terms).backward()
    learns = {name.split(".")[0] for name, p in case.net.named_parameters() if p.grad is not None}
    assert learns == {"decoder"}
    assert all(not p.requires_grad for trunk in trunks for p in trunk.parameters())
    case.net.train()  # as every epoch begins
    case.objective.advance(0.9)
    assert not any(module.training for trunk in trunks for module in trunk.modules())
    assert case.net.get_submodule("decoder").training


def buffers(trunks: list[nn.Module]) -> list[Tensor]:
    return [b for trunk in trunks for b in trunk.buffers()]


def test_without_a_second_stage_branches_and_decoder_learn_together() -> None:
    case = Case("fused", fusion_share=0)
    for progress in (0.0, 0.99):
        case.objective.advance(progress)
        assert set(case.terms()) == {"task", *names("spatial", "temporal")}
    case.objective.total(case.terms()).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in case.net.parameters())


@pytest.mark.parametrize("weight", [0, 0.5])
def test_the_decoder_that_fuses_learns_the_labels_whatever_else_distils(weight: float) -> None:
    more = {"task": {"weight": weight}, "feature": {"weight": 3, "pairs": [["spatial", "spatial.down.1"]]}}
    case = Case("fused", fusion_share=0.5, more=more)
    assert "task" not in case.terms()
    case.objective.advance(0.5)
    terms = case.terms()
    assert set(terms) == {"feature", "task"}
    assert torch.allclose(case.objective.total(terms), 3 * terms["feature"] + (weight or 1) * terms["task"])
    case.objective.total(terms).backward()  # type: ignore[no-untyped-call]
    learns = {name.split(".")[0] for name, p in case.net.named_parameters() if p.grad is not None}
    assert learns == {"decoder"}


def test_no_training_of_trunks_comes_between_the_two_stages() -> None:
    with pytest.raises(ValueError, match=r"finetune_share: 0.6 is more than spatiotemporal.fusion_share = 0.5"):
        Case("fused", fusion_share=0.5, more={"finetune_share": 0.6})
    for kind, fusion_share in (("fused", 0.6), ("fused", 0.0), ("spatial", 0.5)):
        case = Case(kind, fusion_share=fusion_share, more={"finetune_share": 0.6})
        case.objective.advance(0.4)
        assert set(case.terms()) == {"task"}
        trained = kind != "fused" or fusion_share == 0
        assert all(p.requires_grad == trained for p in case.net.get_submodule("spatial").parameters())


def test_the_share_decides_which_terms_there_are() -> None:
    hard = Case("fused", soft_share=0)
    assert set(hard.terms()) == {"spatiotemporal.spatial_hard", "spatiotemporal.temporal_hard"}
    assert hard.objective.teacher_taps == ()
    assert not hard.objective.uses_teacher
    soft = Case("fused", soft_share=1)
    assert set(soft.terms()) == {"spatiotemporal.spatial_soft", "spatiotemporal.temporal_soft"}
    assert torch.allclose(soft.objective.total(soft.terms()), torch.stack(list(soft.terms().values())).sum())


def test_maps_of_the_data_go_before_the_teachers() -> None:
    case = Case("fused", info=replace(INFO, map_names=("spatial",)), soft_share=1)
    assert case.objective.teacher_taps == ("temporal",)
    assert case.objective.uses_teacher
    given = torch.rand(2, 2, 32, 32).half()
    case.batch["map.spatial"] = given
    case.objective.eval()
    terms, (ours, theirs) = case.terms(), case.answers()
    heads = case.objective.parts["spatiotemporal"].heads
    made = {branch: heads[branch](ours.features[branch]) for branch in ("spatial", "temporal")}  # type: ignore[index,operator]
    first = given[:, :1].float()  # of the first frame, not of the second
    assert torch.allclose(terms["spatiotemporal.spatial_soft"], (made["spatial"] - first).square().mean())
    goal = theirs.features["temporal"]
    assert torch.allclose(terms["spatiotemporal.temporal_soft"], (made["temporal"] - goal).square().mean())

    # Pixels beyond the frame of a crop have no label and no map: these two rows count neither way.
    case.batch["mask"][:, 0, :2] = IGNORE
    inner = (made["spatial"] - first)[:, :, 2:].square().mean()
    assert torch.allclose(case.terms()["spatiotemporal.spatial_soft"], inner)
    assert torch.equal(case.terms()["spatiotemporal.temporal_soft"], terms["spatiotemporal.temporal_soft"])

    both = Case("fused", info=replace(INFO, map_names=("spatial", "temporal")))
    assert both.objective.teacher_taps == ()
    assert not both.objective.uses_teacher
    both.batch |= {"map.spatial": given, "map.temporal": given}
    assert set(both.objective(both.answers()[0], None, both.batch)) == names("spatial", "temporal")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="saliency maps, but the task is classification"):
        Case("fused", task=Classification(INFO))
    plain = nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1))
    with pytest.raises(ValueError, match="but Sequential has neither; use space saliency"):
        Case("fused", net=plain)
    with pytest.raises(ValueError, match=r"spatiotemporal.spatial: .*module 'spatial.up.0' gives \(1, 4, 32, 32\)"):
        Case("fused", spatial="spatial.up.0")
    with pytest.raises(ValueError, match=r"spatiotemporal.temporal: module 'motion' of the teacher does not exist;"):
        Case("fused", temporal="motion")
    with pytest.raises(ValueError, match=r"'temporal.down' of the teacher does not run as a whole; did you mean 'temp"):
        Case("fused", temporal="temporal.down")
    with pytest.raises(ValueError, match="response: task saliency has no logits"):
        Case("fused", more={"response": {"weight": 1}})


def test_a_campaign_of_saliency(tiny: Callable[..., CampaignConfig], tmp_path: Any) -> None:
    trunk = {**TRUNK, "widths": [[4], [4], [4], [4, 6]]}
    data: dict[str, Any] = {
        "name": "saliency",
        "runs": str(tmp_path / "runs"),
        "task": "saliency",
        "trials": 1,
        "data": {"num_train": 16, "num_val": 8, "num_test": 8, "frames": 2, "size": 32, "digits": [[3], [8]],
                 "motions": ["up", "down"]},
        "teacher": {"settings": {"widths": [4, 4], "depth": 1}, "fit": {"epochs": 1}},
        "space": {"name": "saliency", "net": ["fused"], **TINY_SPACE, "spatial": trunk},
        "budget": {"max_flops": "210k"},
        "search": {"epochs": 1},
        "retrain": {"epochs": 2},
        "rehearse": False,
        "resources": {"executor": "inline", "max_concurrent": 1},
    }  # fmt: skip
    config = CampaignConfig.model_validate(data)
    file = tmp_path / "saliency.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert "1 of 1 trials complete" in succeed("search", file)
    (path,) = config.run_dir.glob("trials/*/record.json")
    record = json.loads(path.read_text())
    assert record["metric"]["name"] == "nss"
    assert set(record["metrics"]) == {"derived", "retrained"}
    lines = [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]
    first, second = (set(line) for line in lines if line["stage"] == "retrain-0")
    common = {"stage", "epoch", "total"}
    assert first == common | names("spatial", "temporal")
    assert second == common | {"task"}
    succeed("report", config.run_dir)
    assert (config.run_dir / "report" / "report.html").is_file()
    succeed("export", config.run_dir, "--trial", record["number"], "--format", "safetensors")
    (folder,) = (config.run_dir / "export").iterdir()
    exported = json.loads((folder / "verification.json").read_text())
    assert [p["file"] for p in exported["parity"]] == ["student.safetensors"]
    assert exported["parity"][0]["max_abs_difference"] == 0.0
