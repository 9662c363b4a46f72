"""The search that all trials of a campaign share: its supernets, trained once, and the students that they give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.config import CampaignConfig
from nas_kd.config.budget import BudgetRange
from nas_kd.data import Batch, ClipLoader
from nas_kd.files import save_tensors
from nas_kd.search_spaces import ArchSpec, InfeasibleBudgetError
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.shared import SharedSupernet
from nas_kd.training.log import Log, no_log
from nas_kd.training.shared_search import Candidate, KnobPolicy, SearchedNet, search_shared
from nas_kd.trial.context import CampaignContext, all_knobs, load_context, teacher_state
from nas_kd.trial.learner import Learner

CALIBRATION_BATCHES = 16  # on which BatchNorm statistics of a derived student are measured
RANGE_BUDGETS = 8  # of a range of budgets, for each of which students are derived
WEIGHTS_NAME = "supernet.safetensors"
FOLDER = "search"  # of a run, with what the search left
ADAPTERS = "objective"  # before the names of their tensors in the file
KNOTS = "knots"  # their name in the file


class SharedSearch:
    """The supernets of a campaign, one for each net that its space's knobs ask for.

    Args:
        context: of the campaign, with its trained teacher.
        knots: budgets at which gates have logits of their own, in the units of the cost table; those of the campaign
            where none are given. A search that was done keeps its own while budgets change between them.

    Attributes:
        supernets: together they have all combinations of knobs.
        policy: probabilities of those combinations.
        adapters: of each supernet, what of its objective has trained along with it.
    """

    def __init__(self, context: CampaignContext, knots: Sequence[float] = ()) -> None:
        self.context = context
        self.knots = tuple(knots) or knots_of(context.config)
        config, space = context.config, context.space
        groups: dict[tuple[Choice, ...], list[dict[str, Choice]]] = {}
        for knobs in all_knobs(space):
            groups.setdefault(space.structure(knobs), []).append(knobs)
        torch.manual_seed(config.seed)
        self.supernets = [
            SharedSupernet(
                space,
                settings,
                self.knots,
                estimator=config.search.gates.estimator,
                seed=config.seed,
                tables=[context.table(knobs) for knobs in settings],
                figures=[context.figures(knobs) for knobs in settings],
            ).to(context.device)
            for settings in groups.values()
        ]
        self.policy = KnobPolicy(self.supernets)
        self.adapters: list[dict[str, Tensor]] = [{} for _ in self.supernets]

    @property
    def budgets(self) -> list[float]:
        """Those that the campaign lists, ascending, or some of its range; in the units of the campaign file."""
        options = self.context.config.budget.options
        if isinstance(options, BudgetRange):
            return [float(x) for x in np.geomspace(options.low, options.high, RANGE_BUDGETS)]
        return sorted(float(value) for value in options)

    # Training

    @property
    def tag(self) -> str:
        """What decides the result of the training, for its checkpoint."""
        config = self.context.config
        return f"shared search {trained_by(config)} {self.budgets} {config.budget.limits} {config.seed}"

    def train(
        self,
        *,
        checkpoint: Path | None = None,
        progress: OnProgress = no_progress,
        log: Log = no_log,
    ) -> None:
        """Search, or continue from the checkpoint."""
        config, context = self.context.config, self.context
        with ExitStack() as stack:
            learners = [stack.enter_context(closing(self._learner(supernet))) for supernet in self.supernets]
            nets = [
                SearchedNet(supernet, learner.objective, learner.loss)
                for supernet, learner in zip(self.supernets, learners, strict=True)
            ]
            views = learners[0].views
            weights = context.loader(context.splits.weights, config.search, seed=config.seed, train=True, views=views)
            gates = context.loader(context.splits.gates, config.search, seed=config.seed + 1, train=True, views=views)
            search_shared(
                nets,
                self.policy,
                weights,
                gates,
                config.search,
                config.search.gates,
                paths=config.search.paths,
                finish=config.search.finish,
                candidates=self._all_candidates,
                seed=config.seed,
                checkpoint=checkpoint,
                tag=self.tag,
                start=lambda: self._start(weights, gates),
                progress=progress,
                log=log,
            )
            self.adapters = [net.objective.searched_tensors() for net in nets]

    def _learner(self, supernet: SharedSupernet) -> Learner:
        config, widest = self.context.config.search, len(supernet.settings) - 1
        supernet.condition(widest, supernet.knots[-1])
        with supernet.pinned(self.context.space.widest(supernet.knobs)):  # adapters must fit the widest maps
            return Learner(
                self.context,
                supernet,
                config.objective,
                supernet.knobs,
                cached=not config.mix.is_on,
                augment=config.augment,
                varying=True,
                precision=config.precision,
            )

    def _start(self, weights: ClipLoader, gates: ClipLoader) -> None:
        """What the input type begins a search with, for each supernet, and the start of the gates."""
        config = self.context.config
        for supernet in self.supernets:
            supernet.start_gates()
            if self.context.input_type.start_share(config.search.local):
                self.context.input_type.start_search(
                    supernet, weights, gates, config.search, config.search.local, seed=config.seed
                )

    def _all_candidates(self) -> list[Candidate]:
        """Those of all budgets, each once."""
        config, found = self.context.config, dict[str, Candidate]()
        for value in self.budgets:
            budget = config.budget.cost(value)
            for arch in self.candidates(budget, config.search.candidates):
                net = self._net(self.context.space.knobs_of(arch))
                found.setdefault(arch.arch_id, Candidate(net, budget, arch))
        return list(found.values())

    # Students

    @contextmanager
    def at(self, knobs: Mapping[str, Choice], budget: float) -> Iterator[SharedSupernet]:
        """The supernet with these knobs, at them and at a budget in the units of the cost table."""
        supernet = self.supernets[self._net(knobs)]
        supernet.condition_at(knobs, budget)
        yield supernet

    def _net(self, knobs: Mapping[str, Choice]) -> int:
        """The index of the supernet with these knobs."""
        complete = self.context.space.knobs_with(knobs)
        for index, supernet in enumerate(self.supernets):
            if complete in supernet.settings:
                return index
        raise AssertionError("every combination of knobs has a supernet")

    def remarks(self, arch: ArchSpec) -> dict[str, float]:
        """What the gates say at the cost of an architecture, which its trial keeps: a search is known again by it."""
        knobs = self.context.space.knobs_of(arch)
        table = self.context.table(knobs)
        with self.at(knobs, table.cost(arch.choices)) as supernet:
            return {
                "expected_cost": float(supernet.expected_cost().detach()),
                "gate_entropy": supernet.gate_entropy(),
                "unconstrained_cost": float(table.cost(supernet.arch().choices)),
            }

    def student(self, arch: ArchSpec) -> nn.Module:
        """The student of an architecture with the supernet's weights and with BatchNorm statistics of its own.

        In a supernet the running statistics are those of a mixture of architectures, so they are measured anew on
        some training batches.
        """
        knobs = self.context.space.knobs_of(arch)
        with self.at(knobs, self.supernets[0].knots[-1]) as supernet:
            student = supernet.derive(arch=arch)
        self._calibrate(student, knobs)
        return student.eval()

    def adapters_of(self, arch: ArchSpec) -> Mapping[str, Tensor]:
        """Of the supernet that holds an architecture, for the objective of its student."""
        return self.adapters[self._net(self.context.space.knobs_of(arch))]

    def _calibrate(self, student: nn.Module, knobs: Mapping[str, Choice]) -> None:
        norms = [m for m in student.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            return
        context = self.context
        loader = context.loader(context.splits.weights, context.config.search, seed=context.config.seed, train=True)
        momenta = [norm.momentum for norm in norms]
        student.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.config.seed)
            for number, batch in enumerate(loader.epoch(0)):
                if number == CALIBRATION_BATCHES:
                    break
                student(*self._inputs(batch, knobs))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    def _inputs(self, batch: Batch, knobs: Mapping[str, Choice]) -> tuple[Tensor, ...]:
        return self.context.input_type.training_view(batch, self.context.space, knobs).student

    def inherited_score(self, arch: ArchSpec) -> float:
        """The task's metric of a student with inherited weights on the gates' split."""
        knobs = self.context.space.knobs_of(arch)
        metrics = self.context.evaluate_student(self.student(arch), self.context.splits.compared, knobs)
        return float(metrics[self.context.task.metric])

    def compare(
        self, budget: float, number: int, progress: Callable[[float], None] = lambda share: None
    ) -> list[tuple[ArchSpec, float]]:
        """The candidates at a budget with their metric with inherited weights, the best first.

        Of equally good ones the more probable one comes first.

        Args:
            budget: in the units of the cost table.
            number: candidates to compare.
            progress: told the share that is done.
        """
        candidates = self.candidates(budget, number)
        scores = []
        for i, arch in enumerate(candidates):
            scores.append(self.inherited_score(arch))
            progress((i + 1) / len(candidates))
        return sorted(zip(candidates, scores, strict=True), key=lambda pair: -self.context.task.gain(pair[1]))

    def knob_probabilities(self, budget: float) -> list[dict[str, object]]:
        """All combinations of knobs with their probability at a budget, in the units of the cost table."""
        entries: list[dict[str, object]] = []
        for (net, setting), p in zip(self.policy.settings, self.policy.probabilities(budget).tolist(), strict=True):
            entries.append({**self.supernets[net].settings[setting], "probability": p})
        return entries

    def mean_probabilities(self, budget: float) -> dict[str, list[float]]:
        """Gate -> probability of each choice at a budget: the mean over the combinations of knobs, by their
        probability. Four decimals. Moves the supernets."""
        space = self.context.space
        means = {name: torch.zeros(len(choices)) for name, choices in space.variables.items()}
        with torch.no_grad():
            for index, weight in enumerate(self.policy.probabilities(budget).tolist()):
                if weight > 0:
                    supernet = self.supernets[self.policy.move_to(index, budget)]
                    for name, p in supernet.probabilities().items():
                        means[name] += weight * p.cpu()
        return {name: [round(value, 4) for value in mean.tolist()] for name, mean in means.items()}

    def candidates(self, budget: float, number: int) -> list[ArchSpec]:
        """Probable architectures within a budget and the campaign's limits, at most `number`.

        First the most probable one of each combination of knobs, as long as they are at most half of all; then those
        of the largest joint probability of knobs and gates. What a combination of knobs is worth is known less well
        than what a gate's choice is, since knobs have no gradient, so candidates of several combinations are compared.

        Raises:
            InfeasibleBudgetError: no combination of knobs has an architecture within them.
        """
        limits = self.context.config.budget.limits
        best, others = list[tuple[float, ArchSpec]](), list[tuple[float, ArchSpec]]()
        reason = InfeasibleBudgetError(f"no combination of knobs has an architecture of at most {budget:,.0f}")
        probabilities = self.policy.probabilities(budget).tolist()
        for (net, setting), probability in zip(self.policy.settings, probabilities, strict=True):
            supernet = self.supernets[net]
            if probability == 0 or not supernet.reachable(setting, budget):
                continue
            supernet.condition(setting, budget)
            try:
                archs = supernet.archs(number, budget, limits=limits)
            except InfeasibleBudgetError as error:
                reason = error
                continue
            best.append((math.log(probability), archs[0]))
            others += [(math.log(probability) + supernet.log_probability(arch), arch) for arch in archs]
        if not best:
            raise reason
        best.sort(key=lambda pair: -pair[0])
        others.sort(key=lambda pair: -pair[0])
        found: dict[str, ArchSpec] = {}
        for _, arch in [*best[: max(number // 2, 1)], *others]:
            found.setdefault(arch.arch_id, arch)
        return list(found.values())[:number]

    # Files

    def save(self, folder: Path) -> None:
        """Write weights, gates and adapters."""
        tensors = {f"policy.{n}": t for n, t in self.policy.state_dict().items()}
        tensors[KNOTS] = torch.tensor(self.knots, dtype=torch.float64)
        for i, supernet in enumerate(self.supernets):
            tensors |= {f"{i}.{n}": t for n, t in supernet.state_dict().items()}
            tensors |= {f"{ADAPTERS}.{i}.{n}": t for n, t in self.adapters[i].items()}
        save_tensors(tensors, folder / WEIGHTS_NAME)

    @classmethod
    def load(cls, context: CampaignContext, folder: Path) -> SharedSearch:
        """What `save` wrote."""
        tensors = load_file(folder / WEIGHTS_NAME)
        search = cls(context, tensors[KNOTS].tolist())
        for prefix, module in [("policy", search.policy), *((str(i), net) for i, net in enumerate(search.supernets))]:
            module.load_state_dict(_below(prefix, tensors))
            module.requires_grad_(False).eval()
        search.adapters = [_below(f"{ADAPTERS}.{i}", tensors) for i in range(len(search.supernets))]
        return search


def trained_by(config: CampaignConfig) -> dict[str, str]:
    """What decides a search beside the budgets: section -> hash, where `teacher` has data and task as well."""
    return {"teacher": config.teacher_digest, "space": config.digest("space"), "search": config.digest("search")}


def knots_of(config: CampaignConfig) -> tuple[float, ...]:
    """The knots of a search for the budgets of a campaign, ascending, in the units of the cost table."""
    budget = config.budget
    low, high = budget.cost(budget.lowest), budget.cost(budget.highest)
    if low == high:
        return (float(low),)
    return tuple(float(x) for x in np.geomspace(low, high, config.search.gates.knots))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}


def load_search(config_json: str, run_dir: Path, device: str) -> SharedSearch:
    """The search that the campaign has done, in a worker; kept for the next trial.

    Args:
        config_json: config of the campaign as text.
        run_dir: the run's folder.
        device: of the worker.
    """
    return _load_search(config_json, run_dir, device, teacher_state(run_dir))


@lru_cache(maxsize=1)
def _load_search(config_json: str, run_dir: Path, device: str, state: tuple[str, int]) -> SharedSearch:
    return SharedSearch.load(load_context(config_json, run_dir, device), run_dir / FOLDER)
