"""Run a campaign: check it, prepare what its trials share, then run the trials. It composes all packages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import yaml

from nas_kd.callbacks import Note, OnProgress, no_note, no_progress
from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.config.budget import BudgetRange
from nas_kd.config.grid import Cell
from nas_kd.files import CONFIG_NAME, write_text_atomically
from nas_kd.preflight.checked_context import checked_context
from nas_kd.preflight.checks import check_budget, grid_cells
from nas_kd.preflight.explain import with_place
from nas_kd.preflight.rehearsal import rehearse
from nas_kd.preparation.output_checks import describe_certainty, describe_classes
from nas_kd.preparation.ranking import check_costs, check_metrics, describe_ranking
from nas_kd.preparation.shared import prepare_search
from nas_kd.preparation.study import known_costs, study_knobs, trial_work
from nas_kd.preparation.teacher import describe_flops, prepare_latency, prepare_teacher
from nas_kd.runs.latencies import measure_latencies
from nas_kd.runs.run import Run, shown_records
from nas_kd.runs.status import hypervolume
from nas_kd.trial import CampaignContext, TrialFunction
from nas_kd.trial.memory import release_memory
from nas_kd.trials import (
    MEASURED_LATENCY,
    Knob,
    KnobValue,
    KnownCosts,
    Ledger,
    OnEvent,
    RungScheduler,
    StorageError,
    Summary,
    Work,
    check_run_folder,
    has_password,
    proposal_seed,
    run_trials,
)
from nas_kd.trials.trackers import Place, Tracking, find_trackers

SETTINGS = "settings"  # folder of the run with a campaign file for each `config_hash` of its records


@dataclass(frozen=True)
class CampaignResult(Run):
    """A run after its campaign, which has ended or was interrupted.

    Attributes:
        summary: counts, failures, bytes, seconds.

    Examples:
        >>> result = nas_kd.search(nas_kd.load_config("demo.yaml"))
        >>> result.front["trial"].tolist()
        [0]
    """

    summary: Summary


class Campaign:
    """A campaign that is being driven: `prepare` once, then `run`. Holds the run's folder until it is closed.

    Args:
        config: the campaign.

    Raises:
        RuntimeError: another process drives this run.
        ValueError: the run's ledger ranks by something else.

    Examples:
        >>> with nas_kd.Campaign(nas_kd.load_config("demo.yaml")) as campaign:
        ...     ledger = campaign.prepare()
        ...     result = campaign.run()
        >>> len(result.records)
        1
    """

    def __init__(self, config: CampaignConfig) -> None:
        self.config = config
        self.run_dir = config.run_dir.resolve()
        self._knobs: dict[str, Knob] = {}
        self._num_trials = config.trials
        self._derived: list[dict[str, KnobValue]] = []
        self._known_costs: KnownCosts | None = None
        self._work: Work | None = None
        self.ledger: Ledger | None = None
        self._context: CampaignContext | None = None

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ledger is not None:
            self.ledger.close()

    def prepare(self, progress: OnProgress = no_progress, note: Note = no_note) -> Ledger:
        """Check the config against the data, then train or load the teacher.

        Args:
            progress: called with the share that is done and a text.
            note: called with a sentence on each decision.

        Raises:
            ConfigError, ValueError: the config cannot work; nothing was trained.
        """
        config = self.config
        context = self._context = checked_context(config, note)
        self._knobs = study_knobs(context)
        cells = grid_cells(config, context.space.knobs)
        check_costs(context)
        note(describe_ranking(config))
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.ledger = self._open_ledger()
        for text in self.ledger.repairs:
            note(text)
        check_run_folder(config.resources, self.run_dir)
        if config.budget.max_latency_ms is not None:
            prepare_latency(context, self.run_dir, config.resources.threads, progress)
            check_budget(config, context)
        if config.rehearse:
            rehearse(context, self.run_dir, note, progress)
        self._note_data(context, note)
        with with_place("teacher"):
            self._prepare_teacher(context, progress, note)
        if context.shares_search:
            with with_place("search"):
                found = prepare_search(context, self.run_dir, progress, note)
            self._derived, self._known_costs = found.derived, known_costs(context, found)
            note(f"search: {len(self._derived)} architectures derived; {self.run_dir / 'search'} has its records")
        self._note_other_settings(self.ledger, note)
        self._write_config()
        self._enqueue(self.ledger, cells, note)
        release_memory()  # workers on the same GPU need what the teacher's training and the search have freed
        return self.ledger

    def _note_data(self, context: CampaignContext, note: Note) -> None:
        """Say what of the data is left out, and from now on how fast they are read."""
        for text in context.splits.remarks:
            note(text)
        if context.splits.skipped:
            listed = self.run_dir / "skipped.json"
            listed.write_text(json.dumps(context.splits.skipped, indent=2) + "\n")
            note(f"{len(context.splits.skipped)} rows of the data were left out; {listed} lists the reasons")
        context.tell_pace = note

    def _prepare_teacher(self, context: CampaignContext, progress: OnProgress, note: Note) -> None:
        """Train or load the teacher, and say how good it is, how sure that is, and what is odd about it."""
        config, metric, folder = self.config, self.config.metric, self.run_dir / "teacher"
        known = prepare_teacher(context, self.run_dir, progress, note)
        write_text_atomically(folder / "pairs.json", json.dumps(context.pairs, indent=2) + "\n")
        check_metrics(config, [name.removeprefix("val/") for name in known if name.startswith("val/")])
        if f"val/{metric.name}" not in known:
            raise ValueError(
                f"{self.run_dir} was begun with another task: its teacher has no {metric.name}; restore `task`, or "
                "give the campaign another name"
            )
        value = float(known[f"val/{metric.name}"])
        if known["classes"]:
            note(describe_classes(known["classes"], folder / "teacher.json"))
        note(f"teacher: validation {metric.name} {value:.3f}{describe_flops(known, context.input_type.unit)}")
        of_validation = known.get("evaluated", {}).get("val", {})
        if of_validation:
            note(describe_certainty(of_validation, value, is_share=metric.name in metric.percent))
        for warning in known.get("warnings", []):
            note(warning)

    def _note_other_settings(self, ledger: Ledger, note: Note) -> None:
        """Say how many trials that have ended had other settings."""
        digest = self.config.digest()
        others = [record.number for record in ledger.records() if record.config_hash != digest]
        if others:
            note(
                f"trials of this run that had another space, search, retraining, objective or limit: {len(others)}; "
                "they stay on the front, so compare with care, or give this campaign another name"
            )

    def _enqueue(self, ledger: Ledger, cells: Sequence[Cell], note: Note) -> None:
        """Queue what runs before the sampler proposes anything."""
        config, options = self.config, self.config.budget.options
        work = self._work = trial_work(config, self._known_costs)
        if cells:
            # One seed for all: differences between cells are then taken seed by seed. Not the campaign's own, with
            # which the teacher begins: a student that begins from its weights would be close to it from the start.
            seed = proposal_seed(config.seed, 0)
            numbers = ledger.enqueue(cells, self._knobs, seed=seed, work=work)
            done = {record.number for record in ledger.records()}
            note(f"grid: {len(cells)} cells, {sum(number in done for number in numbers)} of them have ended")
        elif self._derived:  # the gates' choice at each budget before the sampler decides
            numbers = ledger.enqueue(self._derived[: config.trials], self._knobs, work=work)
        elif isinstance(options, BudgetRange):
            numbers = []
        else:  # each budget once before the sampler decides
            budgets = [{config.budget.knob: value} for value in options[: config.trials]]
            numbers = ledger.enqueue(budgets, self._knobs, work=work)
        withdrawn = ledger.withdraw(keep=numbers)
        if withdrawn:
            note(f"queued trials that are not in the campaign file any more, and were withdrawn: {withdrawn}")
        if cells:  # trials of another grid, or of none, are no reason to leave cells out
            known = ledger.count("queued", "running", "complete", "failed", "stopped")
            self._num_trials = max(config.trials, known)

    def _open_ledger(self) -> Ledger:
        config = self.config
        try:
            return Ledger.open(
                self.run_dir,
                metric=config.metric,
                ranking=config.ranking,
                config_hash=config.digest(),
                storage=config.storage,
                name=config.name,
            )
        except StorageError as error:
            raise ConfigError(str(error)) from None

    def _write_config(self) -> None:
        path = self.run_dir / CONFIG_NAME
        if has_password(self.config.storage) or has_password(self.config.resources.files_url):
            path.touch(mode=0o600)  # the file keeps its mode when it is replaced
            path.chmod(0o600)
        # The end is marked, since a YAML file that was cut may still be one.
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False, explicit_end=True)
        write_text_atomically(path, text)
        # Records have this hash, and the campaign file may change between them.
        settings = self.run_dir / SETTINGS / f"{self.config.digest()}.yaml"
        if not settings.is_file():
            settings.parent.mkdir(exist_ok=True)
            resources = self.config.resources.model_copy(update={"files_url": None})
            without = self.config.model_copy(update={"storage": None, "resources": resources})  # may hold passwords
            write_text_atomically(settings, yaml.safe_dump(without.model_dump(mode="json"), sort_keys=False))

    def run(self, on_event: OnEvent | None = None) -> CampaignResult:
        """Run the trials that the ledger lacks.

        Args:
            on_event: called with every event of a trial.
        """
        if self.ledger is None:
            raise ValueError("a campaign must be prepared before it runs: call prepare() first")
        config, stopping = self.config, self.config.early_stopping
        trackers = find_trackers(config.trackers)
        tracking = Tracking(
            trackers,
            Place(config.name, self.run_dir),
            self.ledger.records() if trackers else (),
            partial(hypervolume, ranking=config.ranking),
            on_event,
        )
        with tracking:
            summary = run_trials(
                # Trials do not see the database, so its password does not travel.
                TrialFunction(config.model_copy(update={"storage": None}).model_dump_json(), self.run_dir),
                self.ledger,
                self._knobs,
                num_trials=self._num_trials,
                run_dir=self.run_dir,
                resources=config.resources,
                seed=config.seed,
                sampler=config.sampler,
                known_costs=self._known_costs,
                work=self._work,
                scheduler=RungScheduler(stopping.rungs, stopping.reduction_factor) if stopping else None,
                on_event=tracking,
                shared_files=("teacher", "search", "latency"),
            )
        records = tuple(self.ledger.records())
        if self._context is not None and not summary.interrupted:
            if MEASURED_LATENCY not in config.ranking.names:  # else each trial has measured its own
                measure_latencies(self._context, self.run_dir, records, config.resources.threads)
            records = shown_records(self.run_dir, config, records)
        return CampaignResult(self.run_dir, config, records, summary)


def search(config: CampaignConfig, on_event: OnEvent | None = None, note: Note = no_note) -> CampaignResult:
    """Run or resume a campaign: the same call after any crash goes on with what is missing.

    Args:
        config: of the campaign.
        on_event: called with every event of a trial.
        note: called with a sentence on each decision and each doubt before the trials, such as `print`.

    Raises:
        ConfigError, ValueError: the config cannot work; nothing was trained.
        RuntimeError: another process drives this run.

    Examples:
        >>> result = nas_kd.search(nas_kd.load_config("demo.yaml"))  # a second call goes on where the first one ended
        >>> result.pick.number
        0
    """
    with Campaign(config) as campaign:
        campaign.prepare(note=note)
        return campaign.run(on_event)
