"""One whole trial: gate search → derive → retrain → evaluate → record."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from nas_kd.config import CampaignConfig
from nas_kd.data import ClipDataset
from nas_kd.deploy.bundle import BundleInfo, save_bundle
from nas_kd.objectives import ObjectiveConfig
from nas_kd.search_spaces import BUDGET_SHARE, ArchSpec, Supernet, count_flops
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.knapsack import cost_range, most_expensive_within
from nas_kd.training.budget import BudgetController
from nas_kd.training.checkpoint import count_params
from nas_kd.training.fit import FitConfig, OnProgress
from nas_kd.training.measure import environment, part_flops
from nas_kd.trial.context import CampaignContext, load_context
from nas_kd.trial.learner import Learner
from nas_kd.trials import Cost, Metric, Split, Stage, TrialContext, TrialRecord

COLLAPSE_SHARE = 0.6  # of a student's active edges that connect nothing or pass their input on
Metrics = dict[Stage, dict[Split, dict[str, float]]]


@dataclass
class TrialFunction:
    """What the runner executes: picklable, and without anything heavy inside.

    Args:
        config_json: config of the campaign as text; classes of the user's in it are found in `working_dir`.
        run_dir: the run's folder, where the teacher is.
        working_dir: where relative paths of the config begin and own modules are found; a worker starts elsewhere.
    """

    config_json: str
    run_dir: Path
    working_dir: Path = field(default_factory=Path.cwd)

    def __call__(self, context: TrialContext) -> TrialRecord:
        """Run the trial of `context`, or continue it from its checkpoints."""
        os.chdir(self.working_dir)
        torch.set_num_threads(context.num_cpus)
        campaign = load_context(self.config_json, self.run_dir, context.device)
        return Trial(campaign, campaign.config.with_knobs(context.knobs), context).run()


@dataclass
class Trial:
    """One trial at work.

    Args:
        campaign: data, teacher and space.
        config: of the campaign, with this trial's knobs filled in.
        context: number, knobs, seed, folder.
    """

    campaign: CampaignContext
    config: CampaignConfig
    context: TrialContext
    durations_s: dict[str, float] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def knobs(self) -> dict[str, Choice]:
        """The space's knobs of this trial: those proposed, or with the next value of the input type's fallback knob
        where no student meets the budget."""
        space, fallback = self.campaign.space, self.campaign.input_type.fallback_knob
        knobs = space.knobs_with({n: v for n, v in self.context.knobs.items() if n in space.knobs})  # type: ignore[misc]
        if fallback is None:
            return knobs
        for value in space.knobs[fallback]:  # ascending
            if int(value) > int(knobs[fallback]) and cost_range(self.campaign.table(knobs))[0] > self.budget:
                knobs[fallback] = value
        return knobs

    @property
    def budget(self) -> int:
        """In the units of the cost table: FLOPs, or nanoseconds."""
        return self.config.budget.cost(float(self.context.knobs[self.config.budget.knob]))

    @property
    def is_open(self) -> bool:
        """Whether there is anything to search; else there is only the one architecture."""
        space = self.campaign.space
        active = space.active(space.widest(self.knobs).choices)
        return self.campaign.input_type.always_searches or any(len(space.variables[name]) > 1 for name in active)

    def run(self) -> TrialRecord:
        """The whole trial."""
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        supernet = self._search()
        arch = self._derive(supernet)
        derived = supernet.derive(arch=arch)
        del supernet
        student, repeats = self._retrain(arch, derived)
        cost = self._cost(student, arch)
        self.durations_s["total"] = time.perf_counter() - clock
        self._save(student, arch, cost)
        task = self.campaign.task
        return TrialRecord(
            number=self.context.number,
            state="complete",
            seed=self.context.seed,
            config_hash=self.campaign.config.digest(),
            knobs=self.context.knobs,
            metric=Metric(name=task.metric, maximize=task.maximize, percent=task.percent),
            arch=arch.as_dict(),
            arch_id=arch.arch_id,
            cost=cost,
            metrics=self.metrics,
            repeats=repeats,
            diagnostics=self.diagnostics,
            warnings=tuple(self.warnings),
            environment=environment(self.context.device),
            durations_s=self.durations_s,
            started_at=started,
        )

    # Stages

    def _search(self) -> Supernet:
        seed, config = self.context.seed, self.config.search
        torch.manual_seed(seed)
        supernet = Supernet(
            self.campaign.space,
            self.knobs,
            estimator=config.gates.estimator,
            seed=seed,
            table=self.campaign.table(self.knobs),
        )
        supernet.to(self.campaign.device)
        if not self.is_open:
            return supernet
        budget = BudgetController(self.budget)
        clock = time.perf_counter()
        with supernet.pinned(self.campaign.space.widest(self.knobs)):  # adapters must fit the widest maps
            learner = self._learner(supernet, config.objective, config, varying_width=True)
        with closing(learner):
            learner.search(
                budget,
                config,
                seed=seed,
                checkpoint=self.context.directory / "checkpoint-search.pt",
                tag=f"search {self.config.digest()} {dict(self.context.knobs)} {seed}",
                progress=self._stage(0.0, self._search_share),
                log=lambda epoch, means: self._log("search", epoch, means),
            )
        self.durations_s["search"] = time.perf_counter() - clock
        self.metrics["gated"] = {"val": self._evaluate(supernet, self.campaign.splits.val)}
        self.diagnostics["penalty_weight"] = budget.weight
        self.diagnostics["expected_cost"] = float(supernet.expected_cost().detach())
        with torch.no_grad():
            entropies = [
                float(-(p * p.clamp_min(1e-12).log()).sum()) / math.log(len(p))
                for p in supernet.probabilities().values()
                if len(p) > 1
            ]
        self.diagnostics["gate_entropy"] = sum(entropies) / max(len(entropies), 1)
        return supernet

    def _derive(self, supernet: Supernet) -> ArchSpec:
        arch = supernet.arch(self.budget)
        fallback = self.campaign.input_type.fallback_knob
        if fallback is not None:
            taken = self.knobs[fallback]
            asked = self.context.knobs.get(fallback, taken)
            if asked != taken:
                self.warnings.append(self.campaign.input_type.fallback_warning(fallback, asked, taken))
        table, text = self.campaign.table(self.knobs), self.config.budget.text
        cost, free = table.cost(arch.choices), table.cost(supernet.arch().choices)
        self.diagnostics["budget_share"] = cost / self.budget
        self.diagnostics["unconstrained_cost"] = float(free)
        if not self.is_open:
            pass  # there was no choice to remark upon
        elif cost < BUDGET_SHARE * self.budget:
            self.warnings.append(
                f"the student costs {text(cost)}, {cost / self.budget:.0%} of its budget of {text(self.budget)}: of "
                f"the space, the dearest one within it costs {text(most_expensive_within(table, self.budget))}"
            )
        elif abs(math.log(free / self.budget)) > math.log(1.5):
            self.warnings.append(
                f"left alone, the gates would choose {text(free)} for a budget of {text(self.budget)}: the search was "
                "too short for the choice to follow the probabilities, so the knapsack decided more than it should"
            )
        gates = [str(choice) for choice in arch.choices.values() if isinstance(choice, str)]
        idle_choices = self.campaign.space.idle_choices
        idle = sum(choice in idle_choices for choice in gates)
        self.diagnostics["idle_edges"] = idle / max(len(gates), 1)
        if gates and idle / len(gates) > COLLAPSE_SHARE:
            self.warnings.append(
                f"{idle} of {len(gates)} edges are {' or '.join(idle_choices)}: the search may have collapsed to skip "
                "connections"
            )
        return arch

    def _retrain(self, arch: ArchSpec, derived: nn.Module) -> tuple[nn.Module, dict[str, tuple[float, ...]]]:
        config, campaign = self.config.retrain, self.campaign
        if self.is_open:
            self.metrics["derived"] = {"val": self._evaluate(derived, campaign.splits.val)}
        clock = time.perf_counter()
        results: list[tuple[nn.Module, dict[str, dict[str, float]]]] = []
        for i in range(config.num_seeds):
            seed = self.context.seed + i
            torch.manual_seed(seed)
            student = campaign.space.student(arch).to(campaign.device)
            if config.init == "inherit" and self.is_open:
                student.load_state_dict(derived.state_dict())
            learner = self._learner(student, self.config.objective, config)
            share = (1 - self._search_share) / config.num_seeds

            def log(epoch: int, means: Mapping[str, float], i: int = i, student: nn.Module = student) -> None:
                self._log(f"retrain-{i}", epoch, means)
                self._report_rung(i, epoch, student, arch)

            with closing(learner):
                learner.fit(
                    campaign.splits.retrain,
                    config,
                    seed=seed,
                    checkpoint=self.context.directory / f"checkpoint-retrain-{i}.pt",
                    tag=f"retrain {i} {self.config.digest()} {arch.arch_id} {seed}",
                    progress=self._stage(self._search_share + i * share, share),
                    log=log,
                )
            splits = {"val": campaign.splits.val, "test": campaign.splits.test}  # test: only here, and never fed back
            results.append((student, {name: self._evaluate(student, split) for name, split in splits.items()}))
        self.durations_s["retrain"] = time.perf_counter() - clock
        repeats: dict[str, tuple[float, ...]] = {}
        means: dict[Split, dict[str, float]] = {"val": {}, "test": {}}
        for split, mean_of in means.items():
            for name in results[0][1][split]:
                values = tuple(metrics[split][name] for _, metrics in results)
                repeats[f"retrained/{split}/{name}"] = values
                mean_of[name] = sum(values) / len(values)
        self.metrics["retrained"] = means
        return results[0][0], repeats if len(results) > 1 else {}

    def _cost(self, student: nn.Module, arch: ArchSpec) -> Cost:
        example = self.campaign.space.example_input(self.knobs).to(self.campaign.device)
        table = self.campaign.space.cost_table(self.knobs)
        flops = count_flops(student, example).total
        assert flops == table.total(arch.choices), "the cost table and fvcore's count of the student are one truth"
        self.diagnostics |= {name: float(flops) for name, flops in part_flops(student, example).items()}
        fields = self.campaign.input_type.student_cost(student, example, flops, count_params(student))
        if self.config.budget.max_latency_ms is not None:
            fields = {**fields, **self._counted(arch)}
        return Cost.model_validate(fields)

    def _counted(self, arch: ArchSpec) -> dict[str, float]:
        """The cost that the budget limits, by its name in `Cost`."""
        if self.config.budget.max_latency_ms is None:
            return {"flops": float(self.campaign.space.cost(arch))}
        nanoseconds = self.campaign.table(self.knobs).cost(arch.choices)
        return {self.config.budget.cost_field: nanoseconds / 1e6}

    def _save(self, student: nn.Module, arch: ArchSpec, cost: Cost) -> None:
        info = self.campaign.splits.info
        shape = tuple(self.campaign.space.example_input(self.knobs).shape[1:])
        save_bundle(
            self.context.directory,
            student,
            BundleInfo(
                arch=arch.as_dict(),
                arch_id=arch.arch_id,
                input_shape=shape,
                source_frames=info.frames,
                source_size=(info.height, info.width),
                class_names=self.campaign.task.class_names,
                task=self.config.task,
                trial=self.context.number,
                seed=self.context.seed,
                flops=cost.flops,
                params=cost.params,
                metrics=dict(self.metrics["retrained"].items()),
                **self.campaign.input_type.bundle_fields(cost.model_dump()),
            ),
        )

    # Helpers

    def _learner(
        self, net: nn.Module, config: ObjectiveConfig, fit_config: FitConfig, *, varying_width: bool = False
    ) -> Learner:
        return Learner(
            self.campaign, net, config, self.knobs, cached=True, augment=fit_config.augment, varying=varying_width
        )

    def _evaluate(self, model: nn.Module, dataset: ClipDataset) -> dict[str, float]:
        return self.campaign.evaluate_student(model, dataset, self.knobs)

    def _report_rung(self, repeat: int, epoch: int, student: nn.Module, arch: ArchSpec) -> None:
        stopping = self.config.early_stopping
        if stopping is None or repeat > 0 or epoch + 1 not in stopping.rungs:
            return
        score = self._evaluate(student, self.campaign.splits.val)[self.campaign.task.metric]
        self.context.report(values={self.campaign.task.metric: score, **self._counted(arch)}, step=epoch + 1)

    @property
    def _search_share(self) -> float:
        """Share of the trial's time that the search takes, roughly: a search step trains twice."""
        search = 2 * self.config.search.epochs if self.is_open else 0
        retrain = 2 * self.config.retrain.epochs * self.config.retrain.num_seeds
        return search / (search + retrain)

    def _stage(self, start: float, share: float) -> OnProgress:
        return lambda done, words: self.context.report(min(start + share * done, 1.0), words)

    def _log(self, stage: str, epoch: int, means: Mapping[str, float]) -> None:
        """One line an epoch with the mean of every term; a continued trial appends after what it had."""
        self.context.directory.mkdir(parents=True, exist_ok=True)
        line = {"stage": stage, "epoch": epoch + 1, **{name: round(value, 6) for name, value in means.items()}}
        with (self.context.directory / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
