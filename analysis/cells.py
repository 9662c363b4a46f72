"""Cells and links that the tables of the report share. Only `page` makes markup, so all text is escaped."""

from __future__ import annotations

from analysis.front import ParetoFront, TeacherPoint
from analysis.page import Markup, element
from analysis.statistics import Estimate, seed_estimate
from analysis.text import MISSING, is_fraction, metric_text
from trials.record import Metric, Split, TrialRecord


def trial_link(number: int) -> Markup:
    """The trial's number, linked to its row in the table of all trials."""
    return element("a", str(number), href=f"#trial-{number}")


def badge(record: TrialRecord, front: ParetoFront) -> Markup | None:
    """`knee` or `front` where the trial is that, else None."""
    if front.knee is not None and record.number == front.knee.number:
        return element("span", "knee", class_="badge knee")
    return element("span", "front", class_="badge front") if record.number in front.numbers else None


def trial_cell(record: TrialRecord, front: ParetoFront) -> Markup:
    """The link to a front trial, with a badge for the knee."""
    return element("td", trial_link(record.number), " ", badge(record, front) if record is front.knee else None)


def number_cell(text: str) -> Markup:
    """A right-aligned cell."""
    return element("td", text, class_="number")


def score_cell(record: TrialRecord, front: ParetoFront, split: Split, metric: Metric) -> Markup:
    """A metric of a trial at the front's stage, with its interval below where the trial was repeated."""
    value = record.metrics.get(front.stage, {}).get(split, {}).get(metric.name)
    text = metric_text(value, metric)
    estimate = seed_estimate(record, split, front.stage, metric.name)
    if estimate is None or estimate.interval is None:
        return number_cell(text)
    interval = element("span", interval_text(estimate, metric), class_="note")
    return element("td", text, element("br"), interval, class_="number")


def interval_text(estimate: Estimate | None, metric: Metric) -> str:
    """The interval over seeds and their number: `92.1 – 93.4 % (n = 3)`, `none (n = 1)`."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return f"none (n = {estimate.num_values})" if estimate else "none (n = 1)"
    if is_fraction(metric) and max(abs(estimate.low), abs(estimate.high)) <= 1:
        return f"{estimate.low * 100:.1f} – {estimate.high * 100:.1f} % (n = {estimate.num_values})"
    return f"{estimate.low:.4g} – {estimate.high:.4g} (n = {estimate.num_values})"


def saving_cell(teacher: TeacherPoint | None, flops: float) -> Markup:
    """How many times cheaper than its teacher a student is."""
    saving = teacher.saving(flops) if teacher else None
    return number_cell(MISSING if saving is None else f"{saving:.3g}×")
