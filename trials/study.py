"""The Optuna study of a campaign: what is kept on it, and how it is found in a storage."""

from __future__ import annotations

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from nas_kd.trials.objectives import Ranking
from nas_kd.trials.record import Metric

COST_CONVENTION = "one multiply-accumulate is one FLOP"
LEDGER_FORMAT = 1


def begin_study(storage: BaseStorage, name: str | None, metric: Metric, ranking: Ranking) -> optuna.Study:
    """The study of a campaign, made where there is none."""
    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions_of(ranking), load_if_exists=True
    )
    if "format" not in study.user_attrs:  # new, or killed right after it was made
        study.set_user_attr("metric", metric.model_dump())
        study.set_user_attr("objectives", [objective.model_dump() for objective in ranking.objectives])
        study.set_user_attr("convention", COST_CONVENTION)
        study.set_user_attr("format", LEDGER_FORMAT)
        study.set_metric_names([objective.name for objective in ranking.objectives])  # for Optuna's own tools
    return study


def only_study(storage: BaseStorage) -> str | None:
    """The name of the study in a journal, which has one alone; None where it is new."""
    names = [study.study_name for study in storage.get_all_studies()]
    return names[0] if names else None


def directions_of(ranking: Ranking) -> list[StudyDirection]:
    """The directions of the objectives, in their order."""
    return [StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE for maximize in ranking.maximize]
