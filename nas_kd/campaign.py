"""A campaign: prepare what trials share, run them, report, export. The only module that knows all four packages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from sqlalchemy.exc import SQLAlchemyError

from nas_kd.checks import check_budget, check_fit, check_machine, grid_cells
from nas_kd.config import CampaignConfig, ConfigError, load_config
from nas_kd.deploy.export import ExportRecord, Format, export_student
from nas_kd.files import write_text_atomically
from nas_kd.grid import Cell
from nas_kd.preparation import prepare_latency, prepare_teacher
from nas_kd.sections import BudgetRange, parse_flops
from nas_kd.tasks import find_task
from nas_kd.teachers import build_teacher_model
from nas_kd.teachers.teacher import load_weights
from nas_kd.training.fit import OnProgress, no_progress
from nas_kd.trial import TrialFunction
from nas_kd.workbench import build_context
from search_spaces import SearchSpace
from search_spaces.cpu_convolutions import describe_check
from trials import (
    SAMPLERS,
    ChoiceKnob,
    FloatKnob,
    Knob,
    KnobValue,
    Ledger,
    Metric,
    Objective,
    OnEvent,
    RungScheduler,
    Split,
    Summary,
    TrialRecord,
    parse_knobs,
    proposal_seed,
    run_trials,
)

if TYPE_CHECKING:
    from analysis import PivotTable, ReportPaths

CONFIG_NAME = "campaign.yaml"


def study_knobs(config: CampaignConfig, space: SearchSpace) -> dict[str, Knob]:
    """Everything that the study proposes: the budget, the space's knobs with several values, the dotted knobs."""
    options = config.budget.options
    knobs: dict[str, Knob] = {}
    if isinstance(options, BudgetRange):
        knobs[config.budget.knob] = FloatKnob(low=options.low, high=options.high, log=True)
    else:
        knobs[config.budget.knob] = ChoiceKnob(values=options)
    for name, values in space.knobs.items():
        if len(values) > 1:
            knobs[name] = ChoiceKnob(values=values)
    return {**knobs, **parse_knobs(config.knobs)}


@dataclass(frozen=True)
class CampaignResult:
    """Where a campaign left things.

    Attributes:
        run_dir: the run's folder.
        summary: counts, failures, bytes, seconds.
        records: all trials.
    """

    run_dir: Path
    summary: Summary
    records: tuple[TrialRecord, ...]


class Campaign:
    """A campaign that is being driven: `prepare` once, then `run`. Holds the run's folder until it is closed.

    Args:
        config: the campaign.

    Raises:
        RuntimeError: another process drives this run.
        ValueError: the run's ledger ranks by something else.
    """

    def __init__(self, config: CampaignConfig) -> None:
        self.config = config
        self.run_dir = config.run_dir.resolve()
        task = find_task(config.task)
        self._metric = Metric(name=task.metric, maximize=task.maximize)
        self._knobs: dict[str, Knob] = {}
        self._num_trials = config.trials
        self.ledger: Ledger | None = None

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ledger is not None:
            self.ledger.close()

    def prepare(self, progress: OnProgress = no_progress, note: Callable[[str], None] = lambda text: None) -> Ledger:
        """Check the config against the data, then train or load the teacher.

        Args:
            progress: told how far it is.
            note: told, in a sentence, of what was decided on the way.

        Raises:
            ConfigError, ValueError: the config cannot work; nothing was trained.
        """
        config, metric = self.config, self._metric
        if config.sampler not in SAMPLERS:
            raise ConfigError(f"sampler: {config.sampler!r} is unknown; choose from {', '.join(SAMPLERS)}")
        check_machine(config)
        device = "cuda" if config.resources.gpus_per_trial > 0 and torch.cuda.is_available() else "cpu"
        if device == "cpu" and (text := describe_check()):
            note(text)
        context = build_context(config, device)
        for text in check_fit(config, context):
            note(text)
        self._knobs = study_knobs(config, context.space)
        cells = grid_cells(config, context.space.knobs)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.ledger = self._open_ledger()
        if config.budget.max_latency_ms is not None:
            prepare_latency(context, self.run_dir, config.resources.threads, progress)
            check_budget(config, context)
        for text in context.splits.notes:
            note(text)
        if context.splits.skipped:
            listed = self.run_dir / "skipped.json"
            listed.write_text(json.dumps(context.splits.skipped, indent=2) + "\n")
            note(f"{len(context.splits.skipped)} rows of the data were left out; {listed} says why")
        known = prepare_teacher(context, self.run_dir, progress)
        value = float(known[f"val/{metric.name}"])
        cost = f" at {int(known['flops']):,} FLOPs a {context.input_type.unit}" if "flops" in known else ""
        note(f"teacher: validation {metric.name} {value:.3f}{cost}")
        others = [r.number for r in self.ledger.records() if r.config_hash != config.digest()]
        if others:
            note(
                f"{len(others)} trials of this run had another space, search, retraining or objective; they stay on "
                "the front, so compare them with care, or give this campaign another name"
            )
        self._write_config()
        self._enqueue(cells, note)
        return self.ledger

    def _enqueue(self, cells: Sequence[Cell], note: Callable[[str], None]) -> None:
        """Queue what runs before the sampler proposes anything."""
        config, options = self.config, self.config.budget.options
        assert self.ledger is not None, "the ledger is open by now"
        if cells:
            # One seed for all: differences between cells are then taken seed by seed. Not the campaign's own, with
            # which the teacher begins: a student that begins from its weights would be close to it from the start.
            seed = proposal_seed(config.seed, 0)
            numbers = self.ledger.enqueue(cells, self._knobs, seed=seed)
            done = {record.number for record in self.ledger.records()}
            note(f"grid: {len(cells)} cells, {sum(number in done for number in numbers)} of them have ended")
        elif isinstance(options, BudgetRange):
            numbers = []
        else:  # each budget once before the sampler decides
            budgets = [{config.budget.knob: value} for value in options[: config.trials]]
            numbers = self.ledger.enqueue(budgets, self._knobs)
        if withdrawn := self.ledger.withdraw(keep=numbers):
            note(f"{withdrawn} queued trials are not in the campaign file any more and were withdrawn")
        if cells:  # trials of another grid, or of none, are no reason to leave cells out
            known = self.ledger.count("queued", "running", "complete", "failed", "stopped")
            self._num_trials = max(config.trials, known)

    def _open_ledger(self) -> Ledger:
        config = self.config
        try:
            return Ledger.open(
                self.run_dir,
                metric=self._metric,
                objectives=[
                    Objective(name=self._metric.name, maximize=self._metric.maximize),
                    Objective(name=config.budget.cost_field),
                ],
                config_hash=config.digest(),
                storage=config.storage,
                name=config.name,
            )
        except ImportError as error:
            raise ConfigError(
                "storage: its driver is not installed; for PostgreSQL: pip install 'nas-kd[postgresql]'"
            ) from error
        except SQLAlchemyError as error:  # the URL may hold a password, so it is not repeated
            reason = str(error).splitlines()[0]
            raise ConfigError(f"storage: the database cannot be used: {reason}") from error

    def _write_config(self) -> None:
        path = self.run_dir / CONFIG_NAME
        path.touch(mode=0o600 if self.config.storage else 0o644)  # a database's URL may hold a password
        write_text_atomically(path, yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))

    def run(self, on_event: OnEvent | None = None) -> CampaignResult:
        """Run the trials that the ledger lacks.

        Args:
            on_event: told of everything that happens to trials.
        """
        if self.ledger is None:
            raise ValueError("a campaign must be prepared before it runs: call prepare() first")
        config, stopping = self.config, self.config.early_stopping
        summary = run_trials(
            TrialFunction(config.model_dump_json(), self.run_dir),
            self.ledger,
            self._knobs,
            num_trials=self._num_trials,
            run_dir=self.run_dir,
            resources=config.resources,
            seed=config.seed,
            sampler=config.sampler,
            scheduler=RungScheduler(stopping.rungs, stopping.reduction_factor) if stopping else None,
            on_event=on_event,
        )
        return CampaignResult(self.run_dir, summary, tuple(self.ledger.records()))


def search(config: CampaignConfig, on_event: OnEvent | None = None) -> CampaignResult:
    """Run or resume a campaign: the same call after any crash goes on with what is missing.

    Raises:
        ConfigError, ValueError: the config cannot work; nothing was trained.
        RuntimeError: another process drives this run.
    """
    with Campaign(config) as campaign:
        campaign.prepare()
        return campaign.run(on_event)


def load_run(run_dir: Path | str) -> tuple[CampaignConfig, list[TrialRecord]]:
    """The config and the records of a run.

    Raises:
        ValueError: the folder holds no run.
    """
    run_dir = Path(run_dir)
    if not (run_dir / CONFIG_NAME).is_file():
        raise ValueError(f"{run_dir} is not the folder of a run: it has no {CONFIG_NAME}; begin with `nas-kd search`")
    config = load_config(run_dir / CONFIG_NAME)
    ledger = Ledger.load(run_dir, storage=config.storage, name=config.name)
    return config, ledger.records()


def report(run_dir: Path | str, out_dir: Path | str | None = None) -> ReportPaths:
    """Write the report of a run: HTML, CSV and PNG.

    Args:
        run_dir: the run's folder.
        out_dir: where to; `report` in the run's folder by default.

    Raises:
        ValueError: the folder holds no run.
    """
    from analysis import TeacherPoint, write_report  # a second of plotting libraries, which a search does without

    run_dir = Path(run_dir)
    config, records = load_run(run_dir)
    metric = find_task(config.task).metric
    manifest = run_dir / "teacher" / "teacher.json"
    teacher = None
    if manifest.is_file():
        known = json.loads(manifest.read_text())
        teacher = TeacherPoint(
            name=config.teacher.model,
            flops=int(known["flops"]) if "flops" in known else None,
            value=float(known[f"val/{metric}"]),
            test=float(known[f"test/{metric}"]),
            params=int(known["params"]),
            secondary={n: float(v) for n, v in known.items() if n.startswith(("val/", "test/"))},
        )
    facts = {
        "run": str(run_dir),
        "data": config.data.source,
        "task": config.task,
        "space": config.space.name,
        "sampler": config.sampler,
        "seed": str(config.seed),
    }
    return write_report(records, out_dir or run_dir / "report", title=config.name, teacher=teacher, metadata=facts)


def table(
    run_dir: Path | str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    metric: str | None = None,
    split: Split = "test",
    against: Mapping[str, KnobValue] | None = None,
    where: Mapping[str, KnobValue] | None = None,
    out_dir: Path | str | None = None,
) -> PivotTable:
    """The trained students of a run by the values of knobs, with intervals; `analysis.pivot` says how.

    Args:
        run_dir: the run's folder.
        rows: knobs of the rows; by default those that vary.
        columns: knobs of the columns; by default, what is left of them.
        metric: of the task; the primary one by default.
        split: `test` or `val`.
        against: knob -> value of a baseline, to which differences are taken.
        where: knob -> value: leave out all other trials.
        out_dir: where to write `table.md` and `table.csv`; nothing is written without it.

    Returns:
        The table; `analysis.pivot_rich` and `analysis.pivot_markdown` print it.

    Raises:
        ValueError: the folder holds no run, or no such knob, value or metric.
    """
    from analysis import write_pivot  # a second of plotting libraries, which a search does without
    from analysis.pivot import pivot

    config, records = load_run(run_dir)
    made = pivot(
        records,
        rows,
        columns,
        f"{split}/{metric or find_task(config.task).metric}",
        against=_flops_read(against),
        where=_flops_read(where),
    )
    if out_dir is not None:
        write_pivot(made, out_dir)
    return made


def _flops_read(values: Mapping[str, KnobValue] | None) -> dict[str, KnobValue]:
    """Values of knobs, with a budget of `5M` as the number that it is."""
    return {name: parse_flops(value) if name == "max_flops" else value for name, value in (values or {}).items()}


def pick(records: Sequence[TrialRecord], *, trial: int | None = None, max_flops: int | None = None) -> TrialRecord:
    """The trial to export: the one named, the most accurate one within a budget, or the knee of the front.

    Raises:
        ValueError: there is none; the sentence says what there is.
    """
    from analysis import FLOPS, ParetoFront

    complete = [r for r in records if r.state == "complete" and r.cost is not None]
    if not complete:
        raise ValueError("there is no complete trial to export; `nas-kd report` says what failed")
    if trial is not None:
        for record in complete:
            if record.number == trial:
                return record
        raise ValueError(f"trial {trial} is not among the complete ones: {', '.join(str(r.number) for r in complete)}")
    if max_flops is not None:
        front = ParetoFront.from_records(complete, axis=FLOPS)
        within = [r for r in front.records if r.cost is not None and r.cost.flops <= max_flops]
        if not within:
            cheapest = min(r.cost.flops for r in complete if r.cost is not None)
            raise ValueError(f"no complete trial costs at most {max_flops:,} FLOPs; the cheapest costs {cheapest:,}")
        return max(within, key=lambda r: r.cost.flops if r.cost else 0)
    knee = ParetoFront.from_records(complete).knee
    assert knee is not None, "a front with a complete trial has a knee"
    return knee


def _own_space(config: CampaignConfig, run_dir: Path, bundle: Mapping[str, Any]) -> SearchSpace:
    """The space of a bundle that only the user's own code knows."""
    if not config.space.is_derived:
        return config.space.build(len(bundle["class_names"]) + find_task(config.task).extra_outputs)
    settings = bundle["arch"]["settings"]
    teacher = build_teacher_model(config.teacher, settings["teacher"]["num_outputs"])
    load_weights(teacher, run_dir / "teacher" / "teacher.safetensors")
    return config.space.derive(teacher, tuple(settings["frame_size"]), settings["teacher"])


def export(
    run_dir: Path | str,
    *,
    trial: int | None = None,
    max_flops: int | None = None,
    formats: Sequence[Format] = ("safetensors", "pt2", "onnx"),
    out_dir: Path | str | None = None,
) -> tuple[Path, ExportRecord]:
    """Export the student of a run; see `pick` for which one.

    Returns:
        The folder with the files, and the record of the comparison.

    Raises:
        ValueError: nothing to export.
        ExportError: what was written does not compute what was trained.
    """
    run_dir = Path(run_dir)
    config, records = load_run(run_dir)
    record = pick(records, trial=trial, max_flops=max_flops)
    space, bundle = None, run_dir / "trials" / f"{record.number:04d}"
    if ":" in config.space.name or (config.space.is_derived and ":" in config.teacher.model):
        space = _own_space(config, run_dir, json.loads((bundle / "arch.json").read_text()))
    folder = Path(out_dir or run_dir / "export" / f"trial-{record.number:04d}")
    return folder, export_student(bundle, folder, formats, space=space)
