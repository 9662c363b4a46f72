"""The parts of the report, each a function from records to markup. Only `page` makes markup, so all text is escaped."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.advice import Advice
from analysis.cells import badge, interval_text, number_cell, saving_cell, trial_link
from analysis.front import ParetoFront, TeacherPoint
from analysis.page import Child, Markup, definitions, element, join, table
from analysis.statistics import (
    estimate_mean,
    group_by_arch,
    paired_difference,
    seed_estimate,
    seed_values,
    stage_correlations,
)
from analysis.streams import has_streams
from analysis.table import COLUMNS, budget_flops, duration_s
from analysis.text import (
    COST_CONVENTION,
    MISSING,
    count,
    error_headline,
    flops_label,
    is_fraction,
    metric_text,
    si,
    signed_text,
)
from trials.record import TrialRecord

_MAX_ERROR_CHARS = 4000
_MAX_ERRORS = 12
_MAX_REPEATED = 12


def export_command(run: str, number: int) -> str:
    """The command that exports a trial's student, with the run's name quoted for a shell."""
    return f"nas-kd export {shlex.quote(run)} --trial {number}"


def tiles(records: Sequence[TrialRecord], front: ParetoFront) -> Markup:
    """The run's figures at a glance."""
    states = Counter(record.state for record in records)
    shown: dict[str, int | str] = {
        "complete": states["complete"],
        "failed": states["failed"],
        "stopped early": states["stopped"],
        "on the front": len(front.records),
        "unique architectures": len(group_by_arch(records)),
        "hypervolume": f"{front.hypervolume:.3f}" if front.records else MISSING,
    }
    return element(
        "div",
        [element("div", element("b", value), element("span", name), class_="tile") for name, value in shown.items()],
        class_="tiles",
    )


def pick(advice: Advice, run: str) -> Markup:
    """The recommended trial with its export command, its alternatives and what to doubt."""
    alternatives = [
        join(element("b", f"{word}: "), f"{text}.")
        for word, text in (("More accurate", advice.better), ("Cheaper", advice.cheaper))
        if text is not None
    ]
    return element(
        "div",
        element("p", advice.sentence, class_="lead"),
        element("pre", export_command(run, advice.pick.number)),
        element("ul", [element("li", alternative) for alternative in alternatives]) if alternatives else None,
        [element("p", caveat, class_="caveat") for caveat in advice.caveats],
        class_="pick",
    )


def front_table(front: ParetoFront, teacher: TeacherPoint | None) -> Markup:
    """The front by increasing cost, with intervals and the paired gain over the next cheaper point."""
    rows = []
    previous: TrialRecord | None = None
    for record in front.records:
        estimate = seed_estimate(record, front.split, front.stage)
        cost = record.cost
        assert cost is not None, "comparable records carry their cost"
        rows.append(
            [
                element("td", trial_link(record.number), " ", badge(record, front) if record is front.knee else None),
                number_cell(metric_text(record.score(front.split, front.stage), record.metric)),
                number_cell(interval_text(estimate, record.metric)),
                number_cell(_gain(previous, record, front)),
                number_cell(metric_text(record.score("test", front.stage), record.metric)),
                number_cell(si(cost.flops, trim=False)),
                saving_cell(teacher, cost.flops),
                number_cell(si(cost.params, trim=False)),
                number_cell(MISSING if cost.latency_ms is None else f"{cost.latency_ms:.3g}"),
                number_cell(f"{front.contributions[record.number]:.4f}"),
            ]
        )
        previous = record
    metric = front.records[0].metric.name
    unit = ", points" if is_fraction(front.records[0].metric) else ""
    headers: list[Child] = [
        "trial",
        f"validation {metric}",
        "95 % interval (n seeds)",
        f"gain over the row above{unit}",
        f"test {metric} *",
        "FLOPs",
        "teacher's FLOPs / its own",
        "parameters",
        "latency, ms",
        "hypervolume contribution",
    ]
    notes = (
        "* Test values stand beside for information. No trial was selected, ranked or stopped by them. Intervals are "
        "Student's t over repeats with different seeds; one run has none. The gain is paired by seed where both trials "
        "have the same number of repeats. A contribution is the share of the hypervolume's box that only this trial "
        "covers."
    )
    return join(table(headers, rows), element("p", notes, class_="note"))


def architectures(front: ParetoFront, run: str) -> Markup:
    """The choices of each front point, readable, with its knobs and export command."""
    return join([_architecture(record, front, run) for record in front.records])


def _architecture(record: TrialRecord, front: ParetoFront, run: str) -> Markup:
    value = metric_text(record.score(front.split, front.stage), record.metric)
    flops = si(record.cost.flops if record.cost else None)
    heading = f"trial {record.number}: {value} at {flops} FLOPs, architecture {record.arch_id or 'unnamed'}"
    parts: list[Child] = []
    arch = dict(record.arch or {})
    choices, settings = arch.get("choices"), arch.get("settings")
    if isinstance(choices, Mapping) and choices:
        tally = Counter(str(choice) for choice in choices.values())
        parts.append(element("p", ", ".join(f"{number} × {choice}" for choice, number in tally.most_common())))
        parts.append(definitions(_grouped(choices)))
    if isinstance(settings, Mapping) and settings:
        parts += [element("h3", f"Space {arch.get('space', '')}"), definitions(_shown(settings))]
    if arch and not parts:  # another shape of architecture: its JSON says it all
        parts.append(element("pre", json.dumps(arch, indent=2, default=str)))
    parts += [element("h3", "Knobs"), definitions(_shown(record.knobs))]
    parts.append(element("pre", export_command(run, record.number)))
    is_knee = front.knee is not None and front.knee.number == record.number
    return element("details", element("summary", heading), parts, open=is_knee)


def _grouped(choices: Mapping[str, Any]) -> dict[str, Child]:
    """Choices by what stands before the last dot of their name: one line a cell, in order."""
    groups: dict[str, list[str]] = {}
    for name, choice in choices.items():
        group, _, leaf = str(name).rpartition(".")
        groups.setdefault(group or str(name), []).append(f"{leaf}: {choice}" if group else str(choice))
    return {group: ", ".join(members) for group, members in groups.items()}


def _shown(values: Mapping[str, Any]) -> dict[str, Child]:
    return {str(name): _value_text(str(name), value) for name, value in values.items()}


def _value_text(name: str, value: object) -> str:
    if name.endswith("flops") and isinstance(value, int | float):
        return si(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, default=str) if isinstance(value, Mapping | list | tuple) else str(value)


def correlations(records: Sequence[TrialRecord]) -> Markup:
    """How well each stage ranks the trials for the next."""
    rows = [
        [
            f"{earlier} → {later}",
            number_cell(_correlation(result.kendall)),
            number_cell(_correlation(result.spearman)),
            number_cell(str(result.num_pairs)),
        ]
        for (earlier, later), result in stage_correlations(records).items()
    ]
    note = (
        "Validation metric of the supernet with its gates, of the derived student, and of the trained student. Near 1 "
        "the search ranks trials as training does; near 0 its ranking says nothing about the trained students."
    )
    headers: list[Child] = ["stages", "Kendall's tau-b", "Spearman's rho", "trials"]
    return join(table(headers, rows), element("p", note, class_="note"))


def repeated_architectures(records: Sequence[TrialRecord]) -> Markup | None:
    """Architectures that several complete trials trained, with the spread of their values; None without any."""
    rows = []
    for arch_id, group in group_by_arch(records).items():
        values = [value for record in group if (value := record.score("val", "retrained")) is not None]
        if len(values) > 1:
            estimate = estimate_mean(values)
            trials = ", ".join(str(record.number) for record in group)
            interval = interval_text(estimate, group[0].metric)
            rows.append(
                [arch_id, trials, number_cell(metric_text(estimate.mean, group[0].metric)), number_cell(interval)]
            )
    if not rows:
        return None
    headers: list[Child] = ["architecture", "trials", "validation mean", "95 % interval (n trials)"]
    note = "Trials of one architecture may differ in knobs as well as in seed."
    return join(
        element("h3", "Architectures that were found more than once"),
        table(headers, rows[:_MAX_REPEATED]),
        element("p", f"{note} Shown: {min(len(rows), _MAX_REPEATED)} of {len(rows)}.", class_="note"),
    )


def failures(records: Sequence[TrialRecord]) -> Markup:
    """One traceback for each way in which trials failed."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state == "failed":
            groups.setdefault(error_headline(record.error) or "no error text", []).append(record)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    details = []
    for reason, group in ranked[:_MAX_ERRORS]:
        text = group[0].error or "The trial left no error text."
        cut = text if len(text) <= _MAX_ERROR_CHARS else "… " + text[-_MAX_ERROR_CHARS:]
        numbers = ", ".join(str(record.number) for record in group)
        summary = element("summary", f"{count(len(group), 'trial')} ({numbers}): {reason}")
        details.append(element("details", summary, element("pre", cut)))
    return join(details)


def warnings_list(records: Sequence[TrialRecord]) -> Markup | None:
    """Each warning once, with the trials that gave it; None without warnings."""
    trials: dict[str, list[int]] = {}
    for record in records:
        for warning in record.warnings:
            trials.setdefault(warning, []).append(record.number)
    if not trials:
        return None
    ranked = sorted(trials.items(), key=lambda item: -len(item[1]))
    items = []
    for warning, numbers in ranked:
        links = [join(", " if at else "", trial_link(number)) for at, number in enumerate(dict.fromkeys(numbers))]
        items.append(element("li", warning, " (trial " if len(links) == 1 else " (trials ", links, ")"))
    return element("ul", items)


def trial_rows(records: Sequence[TrialRecord], front: ParetoFront) -> Markup:
    """All trials in one table that sorts by any column and filters by text."""
    knobs = sorted({name for record in records for name in record.knobs if name != "max_flops"})
    headers = [
        ("trial", "trial"), ("state", "state"), ("max_flops", "budget"), ("flops", "FLOPs"), ("params", "parameters"),
        ("latency_ms", "latency, ms"), ("val_metric", "validation"), ("test_metric", "test *"), ("gated_val", "gated"),
        ("derived_val", "derived"), ("hv_contribution", "contribution"), ("duration_s", "duration, s"),
        ("arch_id", "architecture"), ("seed", "seed"),
    ]  # fmt: skip
    head = [
        element("th", element("button", label, type="button", title=COLUMNS[name]), scope="col")
        for name, label in headers
    ]
    head += [element("th", element("button", name, type="button", title="knob"), scope="col") for name in knobs]
    head.append(element("th", element("button", "error", type="button", title=COLUMNS["error"]), scope="col"))
    ordered = sorted(records, key=lambda record: record.number)
    body = [_trial_row(record, front, knobs) for record in ordered]
    content = element("table", element("thead", element("tr", head)), element("tbody", body), class_="sortable")
    return element("div", content, class_="scroll")


def _trial_row(record: TrialRecord, front: ParetoFront, knobs: Sequence[str]) -> Markup:
    cost, metric = record.cost, record.metric
    flops, params = (cost.flops, cost.params) if cost else (None, None)
    contribution, duration = front.contributions.get(record.number), duration_s(record)
    scores = [
        record.score(front.split, front.stage),
        record.score("test", front.stage),
        record.score("val", "gated"),
        record.score("val", "derived"),
    ]
    cells = [
        element("td", record.number, " ", badge(record, front), class_="number", data_value=record.number),
        element("td", element("span", record.state, class_=f"badge {record.state}")),
        *(_quantity(value) for value in (budget_flops(record), flops, params)),
        _sortable_cell(cost.latency_ms if cost else None, "{:.3g}"),
        *(element("td", metric_text(s, metric), class_="number", data_value="" if s is None else s) for s in scores),
        _sortable_cell(contribution, "{:.4f}"),
        _sortable_cell(duration, "{:.0f}"),
        element("td", element("code", record.arch_id or "")),
        _sortable_cell(record.seed, "{}"),
    ]
    for name in knobs:
        value = record.knobs.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            cells.append(_sortable_cell(value, "{:.4g}" if isinstance(value, float) else "{}"))
        else:
            cells.append(element("td", "" if value is None else str(value)))
    error = error_headline(record.error)
    cells.append(element("td", error, class_="long", title=error) if error else element("td"))
    is_knee = front.knee is not None and front.knee.number == record.number
    place = "knee" if is_knee else "front" if record.number in front.numbers else None
    return element("tr", cells, class_=place, id=f"trial-{record.number}")


def convention(records: Sequence[TrialRecord]) -> Markup:
    """How cost was counted, said once."""
    text = f"{COST_CONVENTION} Here they are {flops_label(records)}."
    if has_streams(records):
        text += (
            " For a stream with key-frame interval K: (key-frame cost + (K - 1) · delta cost) / K. The additions and "
            "subtractions of the deltas themselves are counted, one FLOP each."
        )
    return element("p", text)


def environment(records: Sequence[TrialRecord], metadata: Mapping[str, str]) -> Markup:
    """What the run says about itself, and where its trials ran; values that differ between trials are all listed."""
    values: dict[str, Counter[str]] = {}
    for record in records:
        for name, value in record.environment.items():
            values.setdefault(name, Counter())[value] += 1
    pairs: dict[str, Child] = dict(metadata)
    for name, counted in sorted(values.items()):
        each = [value if len(counted) == 1 else f"{value} ({count(n, 'trial')})" for value, n in counted.most_common()]
        pairs[name if name not in pairs else f"{name} (trials)"] = ", ".join(each)
    hashes = len({record.config_hash for record in records})
    if records:
        pairs["configurations"] = f"{hashes} ({records[0].config_hash})" if hashes == 1 else str(hashes)
    return definitions(pairs)


def _sortable_cell(value: float | None, pattern: str) -> Markup:
    """A right-aligned number that sorts by its value."""
    return element(
        "td", MISSING if value is None else pattern.format(value), class_="number", data_value=_sort_key(value)
    )


def _quantity(value: int | None) -> Markup:
    return element("td", si(value, trim=False), class_="number", data_value=_sort_key(value))


def _sort_key(value: float | None) -> float | str:
    return "" if value is None else value


def _gain(previous: TrialRecord | None, record: TrialRecord, front: ParetoFront) -> str:
    """Difference to the next cheaper front point, with its interval where both were repeated alike."""
    if previous is None:
        return MISSING
    before, after = seed_values(previous, front.split, front.stage), seed_values(record, front.split, front.stage)
    sign = 1.0 if record.metric.maximize else -1.0
    if len(before) == len(after) > 1:
        gain = paired_difference([sign * value for value in after], [sign * value for value in before])
        ends = [signed_text(end, record.metric) for end in gain.interval or ()]
        return f"{signed_text(gain.mean, record.metric)} [{', '.join(ends)}]"
    old, new = (item.score(front.split, front.stage) or 0.0 for item in (previous, record))
    return signed_text(sign * (new - old), record.metric)


def _correlation(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")
