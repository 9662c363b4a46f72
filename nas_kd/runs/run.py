"""A run as it stands in its folder: its config, its trials, its front."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nas_kd.config import CampaignConfig, ConfigError, load_config
from nas_kd.files import CONFIG_NAME, DamagedFileError, read_json
from nas_kd.tasks import find_task
from nas_kd.trials import MEASURED_LATENCY, Evaluated, Ledger, StorageError, TrialRecord

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from nas_kd.analysis import ParetoFront, TeacherPoint

_LOGGER = logging.getLogger("nas_kd")
CONFIG_END = "..."  # that of a YAML document
_SHOWN = ("trial", "flops", "params", "latency_ms", "val_metric", "val_low", "val_high", "test_metric", "pick")


@dataclass(frozen=True)
class Run:
    """A run to look at; a notebook shows the table of its front.

    Its trials are judged by the first metric of the campaign's objectives, which is the primary one of each record.

    Attributes:
        run_dir: the run's folder.
        config: of the campaign.
        records: all trials that have ended, with the latencies that were measured after them.

    Examples:
        >>> run = nas_kd.load_run("runs/demo")
        >>> run.front[["trial", "flops", "val_metric"]].shape
        (1, 3)
        >>> figure = run.figure()
        >>> run.pick.number
        0
    """

    run_dir: Path
    config: CampaignConfig
    records: tuple[TrialRecord, ...]

    @cached_property
    def pareto(self) -> ParetoFront:
        """The front with all that is computed of it: hypervolume, knee, intervals; selected on validation."""
        from nas_kd.analysis import ParetoFront

        return ParetoFront.from_records(self.records, ranking=self.config.ranking)

    @property
    def pick(self) -> TrialRecord | None:
        """The recommended trial, as in the report; None without a complete one."""
        return self.pareto.pick

    @cached_property
    def trials(self) -> pd.DataFrame:
        """All trials, one a row, with the columns of `nas_kd.analysis.COLUMNS` and one a knob."""
        from nas_kd.analysis import trial_table

        return trial_table(self.records, self.pareto)

    @cached_property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` that are on the front, by increasing cost."""
        from nas_kd.analysis.table import front_rows

        return front_rows(self.trials, self.pareto).reset_index(drop=True)

    def figure(self) -> go.Figure:
        """The front of the report as a plotly figure, which shows itself in a notebook."""
        from nas_kd.analysis.interactive import front_chart

        return front_chart(self.records, front=self.pareto, teacher=teacher_point(self.run_dir, self.config))

    def _repr_html_(self) -> str:
        """The front as a table whose texts are escaped."""
        ranked = [each.cost.field if each.cost else f"val_{each.name}" for each in self.config.ranking.objectives[1:]]
        names = [*_SHOWN[:-1], *(name for name in ranked if name not in _SHOWN), _SHOWN[-1]]
        known = [name for name in names if self.front[name].notna().any()]
        table: str = self.front[known or self.front.columns.tolist()].to_html(index=False, na_rep="–")
        return table


def load_run(run_dir: Path | str) -> Run:
    """A run from its folder, which may be of a campaign that is running.

    Args:
        run_dir: the run's folder.

    Raises:
        ValueError: the folder holds no run, or a file of it is damaged.

    Examples:
        >>> run = nas_kd.load_run("runs/demo")
        >>> [record.state for record in run.records]
        ['complete']
    """
    config, ledger = open_run(run_dir)
    return Run(Path(run_dir), config, shown_records(Path(run_dir), config, ledger.records()))


def shown_records(run_dir: Path, config: CampaignConfig, records: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Records as they are looked at: judged by the campaign's first metric, with the latencies that were measured after
    the trials, or those by which trials are ranked."""
    from nas_kd.analysis import judged  # which loads plotting libraries
    from nas_kd.analysis.latencies import read_latencies, with_latencies

    ranking = config.ranking
    if MEASURED_LATENCY not in ranking.names:
        records = with_latencies(records, read_latencies(run_dir))
    return tuple(judged(records, ranking))


def is_run(run_dir: Path) -> bool:
    """Whether a folder is that of a run that was prepared."""
    return (run_dir / CONFIG_NAME).is_file()


def open_run(run_dir: Path | str) -> tuple[CampaignConfig, Ledger]:
    """The config of a run, and its ledger for reading.

    Where its database cannot be used, the ledger holds the trials whose records are in the run's folder, which is said
    in a warning of the logger `nas_kd`.

    Raises:
        ValueError: the folder holds no run, or a file of it is damaged.
    """
    run_dir = Path(run_dir)
    if not is_run(run_dir):
        raise ValueError(f"{run_dir} is not the folder of a run: it has no {CONFIG_NAME}; begin with `nas-kd search`")
    config = _kept_config(run_dir / CONFIG_NAME)
    try:
        ledger = Ledger.load(run_dir, storage=config.storage, name=config.name)
    except StorageError as error:
        ledger = Ledger.of_records(run_dir, metric=config.metric, ranking=config.ranking)
        _LOGGER.warning(
            "%s; trials that have ended are read from their records in %s instead: %d",
            error,
            run_dir / "trials",
            len(ledger.records()),
        )
    if config.metric.name != ledger.metric.name:
        raise ValueError(
            f"{run_dir / CONFIG_NAME} names the task {config.task}, whose metric is {config.metric.name}, but the "
            f"trials are ranked by {ledger.metric.name}; restore it: the `nas-kd search` command of the run writes it"
        )
    return config, ledger


def _kept_config(path: Path) -> CampaignConfig:
    """The config that a run keeps.

    Raises:
        DamagedFileError: it cannot be read.
    """
    way_out = "the `nas-kd search` command of the run writes it again"
    try:
        if not path.read_text(encoding="utf-8").rstrip().endswith(CONFIG_END):
            raise DamagedFileError(f"{path} is damaged (its end is missing); {way_out}")
        return load_config(path)
    except UnicodeDecodeError:
        raise DamagedFileError(f"{path} is damaged (it is no text); {way_out}") from None
    except ConfigError as error:
        raise DamagedFileError(f"{' '.join(str(error).split())}; {way_out}") from None


def teacher_point(run_dir: Path, config: CampaignConfig) -> TeacherPoint | None:
    """What is known of the teacher of a run; None before it is ready."""
    from nas_kd.analysis import TeacherPoint

    manifest = run_dir / "teacher" / "teacher.json"
    if not manifest.is_file():
        return None
    known = read_json(manifest, "the `nas-kd search` command of the run measures the teacher again")
    metric, main = config.ranking.objectives[0].name, find_task(config.task).metric
    evaluated = known.get("evaluated", {}) if metric == main else {}  # intervals are those of the main metric
    if not {f"val/{metric}", f"test/{metric}", "params"} <= known.keys():
        raise ValueError(
            f"{manifest} has no {metric}, the metric of the task {config.task}; restore `task` in "
            f"{run_dir / CONFIG_NAME}"
        )
    return TeacherPoint(
        name=config.teacher.model,
        flops=int(known["flops"]) if "flops" in known else None,
        uncounted=tuple(known.get("flops_uncounted", ())),
        value=float(known[f"val/{metric}"]),
        test=float(known[f"test/{metric}"]),
        params=int(known["params"]),
        secondary={n: float(v) for n, v in known.items() if n.startswith(("val/", "test/"))},
        evaluated={split: Evaluated.model_validate(fields) for split, fields in evaluated.items()},
        by_interval={int(interval): values for interval, values in known.get("by_interval", {}).items()},
    )
