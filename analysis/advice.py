"""Which student of a run to take, in words, with its alternatives and with what the data do not support.

The rule, `ParetoFront.pick`: the cheapest student whose validation value is within a tolerance of the best one, or
within one standard error of the best where that is more (the one-standard-error rule). Cheap is what the campaign's
objectives say, in their order.

References:
    Breiman, L., Friedman, J., Olshen, R. and Stone, C. (1984). Classification and regression trees. Wadsworth,
        section 3.4.3.
    Hastie, T., Tibshirani, R. and Friedman, J. (2009). The elements of statistical learning. Springer, section 7.10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_kd.analysis.axes import FLOPS, Axis
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.intervals import Uncertain, optimism_of_the_best, trivial_level, uncertainty
from nas_kd.analysis.text import count, difference_text, fewer_or_more, metric_text, range_text
from nas_kd.trials.record import TrialRecord

_MOST_LISTED = 8


@dataclass(frozen=True)
class Advice:
    """The recommended trial and its alternatives.

    Attributes:
        pick: the trial that the rule takes.
        sentence: which trial, what it reaches at what cost, and why.
        beside: how it compares with the teacher, and what it reaches on the test split.
        alternatives: what else may be wanted -> which trial that is, in words.
        caveats: what the data do not support, one sentence each.
    """

    pick: TrialRecord
    sentence: str
    beside: str
    alternatives: tuple[tuple[str, str], ...]
    caveats: tuple[str, ...]


def advise(front: ParetoFront, teacher: TeacherPoint | None = None, budgets: Sequence[float] = ()) -> Advice | None:
    """Recommend a trial of the front; None for an empty front.

    Args:
        front: with the tolerance of the rule.
        teacher: stands beside the pick where known.
        budgets: of the campaign, on the front's axis; the best student within each is named.
    """
    pick = front.pick
    if pick is None:
        return None
    return Advice(
        pick=pick,
        sentence=_lead(pick, front),
        beside=_beside(pick, front, teacher),
        alternatives=tuple(_alternatives(pick, front, teacher, budgets)),
        caveats=tuple(_caveats(pick, front, teacher)),
    )


def _lead(pick: TrialRecord, front: ParetoFront) -> str:
    value, interval = metric_text(pick.score(front.split, front.stage), pick.metric), front.interval(pick)
    if interval is not None:
        value += f" (95 % interval {range_text(interval.low, interval.high, pick.metric)})"
    return f"Pick trial {pick.number}: {value} at {front.place_text(pick)}, {_reason(pick, front)}."


def _place(record: TrialRecord, front: ParetoFront) -> str:
    value = metric_text(record.score(front.split, front.stage), record.metric)
    return f"{value} at {front.place_text(record)}"


def _named(record: TrialRecord, front: ParetoFront) -> str:
    return f"trial {record.number}, {_place(record, front)}"


def _reason(pick: TrialRecord, front: ParetoFront) -> str:
    best = front.best
    assert best is not None, "a front with a pick has a best trial"
    if len({tuple(point) for point in front.points.tolist()}) == 1:
        which = "the only student" if len(front.records) == 1 else f"the first of {len(front.records)} equal students"
        return f"{which} on the front: no other complete trial is cheaper or better"
    allowed = difference_text(front.allowed_loss, pick.metric)
    error = front.best_interval
    why = f"one standard error of the best, over {error.basis}" if front.is_allowed_by_error and error else "tolerance"
    if pick is best:
        return f"the best one; no cheaper student is within {allowed} of it ({why})"
    return f"the cheapest student within {allowed} ({why}) of the best, {_named(best, front)}"


def _beside(pick: TrialRecord, front: ParetoFront, teacher: TeacherPoint | None) -> str:
    sentences = []
    if teacher is not None:
        sentences.append(_against_teacher(pick, front, teacher))
    test = pick.score("test", front.stage)
    if test is not None:
        words = f"On the test split, which selected nothing, it reaches {metric_text(test, pick.metric)}"
        level = None if teacher is None else teacher.score_beside(pick, "test")
        if level is not None:
            words += f", the teacher {metric_text(level, pick.metric)}"
        sentences.append(f"{words}.")
    return " ".join(sentences)


def _against_teacher(pick: TrialRecord, front: ParetoFront, teacher: TeacherPoint) -> str:
    level, value = teacher.score_beside(pick, front.split), pick.score(front.split, front.stage)
    verdict, conjunction = "not compared with it on the same frames", ""
    if level is not None and value is not None:
        gap = value - level
        word = "better" if (gap > 0) == pick.metric.maximize else "worse"
        verdict, conjunction = (f"{difference_text(gap, pick.metric)} {word}", " than") if gap else ("equal", " to")
    savings = [(teacher.saving(axis.of(pick), axis), axis.noun) for axis in front.axes]
    words = " and ".join(f"{fewer_or_more(saving)} {noun}" for saving, noun in savings if saving is not None)
    if words:
        ending = f"it is {verdict} on validation" if level is not None else f"it was {verdict}"
        return f"Compared with the teacher it needs {words}, and {ending}."
    if level is None:
        return f"It was {verdict}."
    if FLOPS.name in front.ranking.names and teacher.flops is not None and teacher.uncounted:
        return (
            f"It is {verdict}{conjunction} the teacher on validation, which needs at least {teacher.flops:,} FLOPs "
            f"(uncounted: {', '.join(teacher.uncounted)})."
        )
    nouns = " and ".join(axis.noun for axis in front.axes if axis.is_cost)
    unknown = f", whose {nouns} {'is' if nouns == 'latency' else 'are'} not known" if nouns else ""
    return f"It is {verdict}{conjunction} the teacher on validation{unknown}."


def _alternatives(
    pick: TrialRecord, front: ParetoFront, teacher: TeacherPoint | None, budgets: Sequence[float]
) -> list[tuple[str, str]]:
    best, knee = front.best, front.knee
    costs = {id(record): row[:-1] for record, row in zip(front.records, front.points.tolist(), strict=True)}
    found = []
    if best is not None and costs[id(best)] != costs[id(pick)]:
        found.append((f"Best {pick.metric.name}", _named(best, front)))
    for column, axis in enumerate(front.axes):
        sign = -1 if axis.objective.maximize else 1
        least = min(front.records, key=lambda record: sign * costs[id(record)][column])  # used at once
        if costs[id(least)][column] != costs[id(pick)][column]:
            found.append((_least_words(axis, front), _named(least, front)))
    if knee is not None and len(front.records) > 2 and costs[id(knee)] != costs[id(pick)]:
        found.append(("Knee, where the front bends most", _named(knee, front)))
    within = [record for record in front.records if teacher is not None and _is_close(record, front, teacher)]
    if teacher is not None and any(teacher.score_beside(record, front.split) is not None for record in front.records):
        name = f"Cheapest within {difference_text(front.tolerance_value, pick.metric)} of the teacher"
        found.append((name, _named(within[0], front) if within else "no student"))
    if len(budgets) > 1:
        found.append((f"Best within each budget ({front.axis.unit})", _by_budget(front, budgets)))
    return found


def _least_words(axis: Axis, front: ParetoFront) -> str:
    """What a student is that is best on an axis."""
    if not axis.is_cost:
        return f"Best {axis.name}"
    return "Cheapest" if front.is_plane else f"Cheapest in {axis.noun}"


def _is_close(record: TrialRecord, front: ParetoFront, teacher: TeacherPoint) -> bool:
    """Whether a student is at most the tolerance worse than the teacher."""
    level, value = teacher.score_beside(record, front.split), record.score(front.split, front.stage)
    if level is None or value is None:
        return False
    loss = level - value if record.metric.maximize else value - level
    return loss <= front.tolerance_value + 1e-12


def _by_budget(front: ParetoFront, budgets: Sequence[float]) -> str:
    parts = []
    ordered = sorted(set(budgets))
    for budget in ordered[:_MOST_LISTED]:
        best = front.best_within(budget)
        if best is not None:
            value = metric_text(best.score(front.split, front.stage), best.metric)
            parts.append(f"{front.axis.number(budget)}: trial {best.number} ({value})")
        else:
            parts.append(f"{front.axis.number(budget)}: none")
    more = f"; and {len(ordered) - _MOST_LISTED} more" if len(ordered) > _MOST_LISTED else ""
    return "; ".join(parts) + more


def _caveats(pick: TrialRecord, front: ParetoFront, teacher: TeacherPoint | None) -> list[str]:
    own = uncertainty(pick, front.split, front.stage)
    found = _trivial(front, teacher)
    if own is None:
        found.append(
            f"The value of trial {pick.number} rests on {count(front.num_trainings(pick), 'training run')} and has no "
            "interval: a small difference to other students may be chance."
        )
        return found
    same = [record.number for record in front.records if record is not pick and not _are_apart(record, own, front)]
    if same:
        listed = ", ".join(str(number) for number in same[:_MOST_LISTED])
        more = f" and {len(same) - _MOST_LISTED} more" if len(same) > _MOST_LISTED else ""
        found.append(
            f"The data ({own.basis}) cannot tell trial {pick.number} and {'trials' if len(same) > 1 else 'trial'} "
            f"{listed}{more} apart: the 95 % {'intervals' if len(same) > 1 else 'interval'} of the difference "
            f"{'include' if len(same) > 1 else 'includes'} zero."
        )
    if own.num_seeds is None:
        found.append(
            "Each student was trained once: how far another training would move its value is not known "
            "(retrain.num_seeds)."
        )
    optimism = _optimism(front)
    if optimism:
        found.append(optimism)
    return found


def _are_apart(record: TrialRecord, own: Uncertain, front: ParetoFront) -> bool:
    """Whether the data tell two students apart; not where one of them has no interval."""
    other = uncertainty(record, front.split, front.stage)
    return other is not None and own.is_apart_from(other)


def _optimism(front: ParetoFront) -> str:
    """That the best of many looks better than it is; empty where that is not known to matter."""
    best, error, number = front.best, front.best_interval, len(front.placed) - len(front.left_out)
    if best is None or error is None or number < 2:
        return ""
    optimism = optimism_of_the_best(number, error.standard_error)
    return (
        f"Validation chose among {count(number, 'student')}: the best of {number} equally good ones would look "
        f"{difference_text(optimism, best.metric)} better than it is, by chance. The test value has no such bias."
    )


def _trivial(front: ParetoFront, teacher: TeacherPoint | None) -> list[str]:
    """Sentences where the best student, or the teacher, is not shown to be better than a net that looks at nothing."""
    best = front.best
    if best is None:
        return []
    level = trivial_level(best.evaluated.get(front.split), maximize=best.metric.maximize)
    if level is None:
        return []
    (value, words), found, metric = level, [], best.metric
    own = uncertainty(best, front.split, front.stage)
    if own is not None and not own.beats(value, maximize=metric.maximize):
        found.append(
            f"No student is shown to be better than {words} ({metric_text(value, metric)}): none of them can be "
            "recommended, and differences between them mean nothing."
        )
    teacher_value = None if teacher is None else teacher.uncertainty(front.split)
    if teacher_value is not None and not teacher_value.beats(value, maximize=metric.maximize):
        found.append(
            f"The teacher itself, {metric_text(teacher_value.value, metric)}, is not shown to be better than {words} "
            f"({metric_text(value, metric)}): a student that is as good as it has learnt nothing."
        )
    return found
