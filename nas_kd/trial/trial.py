"""What all trials do: choose an architecture → retrain → evaluate → record."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

import torch
from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.config import LATENCY_OBJECTIVE, CampaignConfig
from nas_kd.data import ClipDataset
from nas_kd.deploy.bundle import BundleInfo, Measured, SeveralTrainings, save_bundle
from nas_kd.deploy.student_view import view_of
from nas_kd.deploy.timing import summary, timed
from nas_kd.files import write_text_atomically
from nas_kd.objectives import ObjectiveConfig
from nas_kd.search_spaces import ArchSpec, count_flops, count_params, layer_flops
from nas_kd.search_spaces.arch import Choice
from nas_kd.tasks.item_scores import ItemScores
from nas_kd.teachers.weights import match_weights
from nas_kd.training.evaluate import Scored
from nas_kd.training.log import log_epoch
from nas_kd.training.measure import code_version, environment, part_flops
from nas_kd.training.settings import FitConfig
from nas_kd.trial.context import CampaignContext
from nas_kd.trial.learner import Learner
from nas_kd.trials import (
    Cost,
    Evaluated,
    FinalState,
    Split,
    Stage,
    TrialContext,
    TrialRecord,
)
from nas_kd.trials.objectives import COSTS, MEASURED_LATENCY
from nas_kd.trials.record import LAYERS_NAME

COLLAPSE_SHARE = 0.6  # of a student's active edges that connect nothing or pass their input on
_LATENCIES = {"ms": "latency_ms", "keyframe_ms": "keyframe_latency_ms", "delta_ms": "delta_latency_ms"}
Metrics = dict[Stage, dict[Split, dict[str, float]]]


@dataclass(frozen=True)
class Training:
    """One training of a trial's student.

    Attributes:
        student: in evaluation mode.
        seed: of weights, order and augmentation.
        metrics: split -> metric -> value of these weights.
        scores: split -> what its metrics are made of; without those that a task does not tell.
    """

    student: nn.Module
    seed: int
    metrics: Mapping[Split, Mapping[str, float]]
    scores: Mapping[Split, Sequence[ItemScores]] = field(default_factory=dict)


@dataclass(frozen=True)
class Derived:
    """What a search gives for a trial.

    Attributes:
        arch: the architecture.
        student: with the weights of the supernet.
        adapters: what of the search's objective has trained along with them.
    """

    arch: ArchSpec
    student: nn.Module
    adapters: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Trial(ABC):
    """One trial at work; its kinds differ in where the architecture comes from.

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
    evaluated: dict[Split, Evaluated] = field(default_factory=dict)

    @property
    @abstractmethod
    def knobs(self) -> dict[str, Choice]:
        """The space's knobs of this trial."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the weights to inherit come out of a search; there may be only one architecture."""

    @abstractmethod
    def choose(self) -> Derived:
        """The architecture of this trial, and what the search leaves of it."""

    @property
    @abstractmethod
    def choice_share(self) -> float:
        """Share of the trial's time that `choose` takes, roughly."""

    def run(self) -> TrialRecord:
        """The whole trial."""
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        derived = self.choose()
        arch = derived.arch
        self._check_idle(arch)
        cost = self._cost(derived.student.eval(), arch)
        broken = self._broken(cost)
        if broken:
            self.warnings.append(f"not trained, since {broken}")
            return self._record("stopped", arch, cost, started, clock)
        trainings = self._retrain(derived, cost)
        self.metrics["retrained"] = mean_metrics(trainings)
        chosen = self._best(trainings)
        self._save(trainings, chosen, arch, cost)
        return self._record("complete", arch, cost, started, clock, trainings, chosen)

    def _broken(self, cost: Cost) -> str:
        """The constraint that a student of this cost does not keep, in words; empty where it keeps all of them."""
        for constraint in self.config.ranking.constraints:
            kind = COSTS.get(constraint.name)
            value = None if kind is None else getattr(cost, kind.field)
            if kind is not None and constraint.excess(value) > 0:
                return f"{constraint.name} is {value:.3g}, but must be {str(constraint).removeprefix(constraint.name)}"
        return ""

    def _record(
        self,
        state: FinalState,
        arch: ArchSpec,
        cost: Cost,
        started: str,
        clock: float,
        trainings: Sequence[Training] = (),
        chosen: int = 0,
    ) -> TrialRecord:
        """What is kept of the trial, whose clock began at `clock`."""
        self.durations_s["total"] = time.perf_counter() - clock
        return TrialRecord(
            number=self.context.number,
            state=state,
            seed=self.context.seed,
            config_hash=self.campaign.config.digest(),
            knobs=self.context.knobs,
            metric=self.config.metric,
            arch=arch.as_dict(),
            arch_id=arch.arch_id,
            cost=cost,
            metrics=self.metrics,
            repeats={f"retrained/{name}": values for name, values in seed_values(trainings).items()},
            chosen_repeat=chosen if len(trainings) > 1 else None,
            evaluated=self.evaluated,
            diagnostics=self.diagnostics,
            warnings=tuple(self.warnings),
            environment={**environment(self.context.device), "nas-kd": code_version()},
            durations_s=self.durations_s,
            started_at=started,
        )

    # Stages

    def _check_idle(self, arch: ArchSpec) -> None:
        """Warn of an architecture most of whose edges compute nothing."""
        gates = [str(choice) for choice in arch.choices.values() if isinstance(choice, str)]
        idle_choices = self.campaign.space.idle_choices
        idle = sum(choice in idle_choices for choice in gates)
        self.diagnostics["idle_edges"] = idle / max(len(gates), 1)
        if gates and idle / len(gates) > COLLAPSE_SHARE:
            self.warnings.append(
                f"{idle} of {len(gates)} edges are {' or '.join(idle_choices)}: the search may have collapsed to skip "
                "connections"
            )

    def _retrain(self, derived: Derived, cost: Cost) -> list[Training]:
        """The student, trained once for each seed."""
        config, campaign, arch = self.config.retrain, self.campaign, derived.arch
        inherits = config.init == "inherit" and self.is_open
        if self.is_open:
            self.metrics["derived"] = {"val": self._evaluate(derived.student, campaign.splits.val)}
        clock = time.perf_counter()
        trainings = []
        scores: dict[Split, list[ItemScores]] = {"val": [], "test": []}  # test: only here, and never fed back
        for i in range(config.num_seeds):
            seed = self.context.seed + i
            torch.manual_seed(seed)
            student = campaign.space.student(arch).to(campaign.device)
            if inherits:
                student.load_state_dict(derived.student.state_dict())
            if config.weights is not None:
                self._start_from(student, config.weights)
            adapters = derived.adapters if inherits else {}
            learner = self._learner(student, self.config.objective, config, compiled=config.compile, adapters=adapters)
            share = (1 - self.choice_share) / config.num_seeds

            def log(epoch: int, means: Mapping[str, float], i: int = i, student: nn.Module = student) -> None:
                log_epoch(self.context.directory, f"retrain-{i}", epoch, means)
                self._report_rung(i, epoch, student, cost)

            with closing(learner):
                epochs = learner.fit(
                    campaign.splits.retrain,
                    config,
                    seed=seed,
                    checkpoint=self.context.directory / f"checkpoint-retrain-{i}.pt",
                    tag=f"retrain {i} {self.config.digest()} {arch.arch_id} {seed}",
                    progress=self._stage(self.choice_share + i * share, share),
                    log=log,
                )
            if config.keep == "best":
                self.diagnostics[f"kept_epoch_{i}"] = float(epochs)
            metrics: dict[Split, dict[str, float]] = {}
            own: dict[Split, list[ItemScores]] = {"val": [], "test": []}
            for split, of_split in scores.items():
                metrics[split] = self._evaluate(student, getattr(campaign.splits, split), own[split].append)
                of_split += own[split]
            trainings.append(Training(student, seed, metrics, own))
        self.durations_s["retrain"] = time.perf_counter() - clock
        self.evaluated = {split: campaign.evaluated(split, found) for split, found in scores.items()}
        return trainings

    def _start_from(self, student: nn.Module, path: Path) -> None:
        """Give a student what a file has for it."""
        match = match_weights(student, path, "retrain.weights")
        student.load_state_dict(match.tensors, strict=False)
        self.diagnostics["started_share"] = match.share
        warning = f"retrain.weights: no parameter of {path} has the name and the shape of one of this student's"
        if match.share == 0 and warning not in self.warnings:
            self.warnings.append(warning)

    def _best(self, trainings: Sequence[Training]) -> int:
        """Which training is kept: the best on the validation split, the first of equal ones."""
        task = self.campaign.task
        gains = [task.gain(training.metrics["val"][task.metric]) for training in trainings]
        return gains.index(max(gains))

    def _cost(self, student: nn.Module, arch: ArchSpec) -> Cost:
        example = self.campaign.space.example_input(self.knobs).to(self.campaign.device)
        table = self.campaign.space.cost_table(self.knobs)
        count = count_flops(student, example)
        flops = count.total
        assert flops == table.total(arch.choices), "the cost table and fvcore's count of the student are one truth"
        layers = [asdict(layer) for layer in layer_flops(student, count)]
        write_text_atomically(self.context.directory / LAYERS_NAME, json.dumps(layers) + "\n")
        self.diagnostics |= {name: float(flops) for name, flops in part_flops(student, example).items()}
        fields = self.campaign.input_type.student_cost(student, example, flops, count_params(student))
        names = self.config.ranking.names
        if self.config.budget.is_latency or LATENCY_OBJECTIVE in names:
            nanoseconds = self.campaign.latency_table(self.knobs).cost(arch.choices)
            fields = {**fields, LATENCY_OBJECTIVE: nanoseconds / 1e6}
        if MEASURED_LATENCY in names:
            fields = {**fields, **self._measured_latency(student)}
        return Cost.model_validate(fields)

    def _measured_latency(self, student: nn.Module) -> dict[str, float]:
        """The latency of the student by its names in `Cost`, in ms: the median at batch 1."""
        example = torch.zeros(1, *self.campaign.space.example_input(self.knobs).shape[1:], device=self.campaign.device)
        passes = self.campaign.input_type.latency_passes(student.to(self.campaign.device), example)
        times, _ = timed({"student": passes}, self.campaign.device, no_progress)
        found = summary(times["student"], passes)
        return {name: found[key] for key, name in _LATENCIES.items() if key in found}

    def _save(self, trainings: Sequence[Training], chosen: int, arch: ArchSpec, cost: Cost) -> None:
        """Write the weights of one training with its own metrics, and those of all trainings beside them."""
        info, kept = self.campaign.splits.info, trainings[chosen]
        input_type, space = self.campaign.input_type, self.campaign.space
        measured = self.evaluated
        if len(trainings) > 1:
            measured = {split: self.campaign.evaluated(split, found) for split, found in kept.scores.items()}
        fields = set(Measured.model_fields)
        shape = tuple(self.campaign.space.example_input(self.knobs).shape[1:])
        save_bundle(
            self.context.directory,
            kept.student,
            BundleInfo(
                arch=arch.as_dict(),
                arch_id=arch.arch_id,
                input_shape=shape,
                source_frames=info.frames,
                source_size=(info.height, info.width),
                decoding=self.config.data.decoding,
                labels=self.config.data.label_form,
                view=view_of(space, self.knobs, info.input_shape) if input_type.students_fit_items else None,
                class_names=self.campaign.task.class_names,
                task=self.config.task,
                task_options=dict(self.config.task_options),
                data=info.name,
                teacher=self.config.teacher.model,
                trial=self.context.number,
                seed=kept.seed,
                flops=cost.flops,
                params=cost.params,
                metrics={split: dict(values) for split, values in kept.metrics.items()},
                measured={split: Measured(**each.model_dump(include=fields)) for split, each in measured.items()},
                trainings=SeveralTrainings.of(seed_values(trainings), chosen) if len(trainings) > 1 else None,
                **self.campaign.input_type.bundle_fields(cost.model_dump()),
            ),
        )

    # Helpers

    def _learner(
        self,
        net: nn.Module,
        config: ObjectiveConfig,
        fit_config: FitConfig,
        *,
        varying_width: bool = False,
        compiled: bool = False,
        adapters: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Learner:
        return Learner(
            self.campaign,
            net,
            config,
            self.knobs,
            cached=not fit_config.mix.is_on,
            augment=fit_config.augment,
            varying=varying_width,
            precision=fit_config.precision,
            compiled=compiled,
            adapters=adapters,
        )

    def _evaluate(self, model: nn.Module, dataset: ClipDataset, scored: Scored | None = None) -> dict[str, float]:
        return self.campaign.evaluate_student(model, dataset, self.knobs, scored)

    def _report_rung(self, repeat: int, epoch: int, student: nn.Module, cost: Cost) -> None:
        stopping = self.config.early_stopping
        if stopping is None or repeat > 0 or epoch + 1 not in stopping.rungs:
            return
        metrics = self._evaluate(student, self.campaign.splits.val)
        names = self.config.ranking.names
        values = {name: getattr(cost, COSTS[name].field) if name in COSTS else metrics[name] for name in names}
        self.context.report(values={name: float(value) for name, value in values.items()}, step=epoch + 1)

    def _stage(self, start: float, share: float) -> OnProgress:
        return lambda done, words: self.context.report(min(start + share * done, 1.0), words)


def mean_metrics(trainings: Sequence[Training]) -> dict[Split, dict[str, float]]:
    """Split -> metric -> mean over the trainings."""
    means: dict[Split, dict[str, float]] = {}
    for split, metrics in trainings[0].metrics.items():
        means[split] = {name: fmean(training.metrics[split][name] for training in trainings) for name in metrics}
    return means


def seed_values(trainings: Sequence[Training]) -> dict[str, tuple[float, ...]]:
    """`split/metric` -> value of each training; empty where there is one training only."""
    if len(trainings) <= 1:
        return {}
    values = {}
    for split, metrics in trainings[0].metrics.items():
        for name in metrics:
            values[f"{split}/{name}"] = tuple(training.metrics[split][name] for training in trainings)
    return values
