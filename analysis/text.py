"""Formatting of numbers, metrics, costs and error messages for readers."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from nas_kd.trials.record import Metric, TrialRecord

MISSING = "–"
COST_CONVENTION = "FLOPs are counted as fvcore does: one multiply-accumulate is one FLOP."

_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float | None, digits: int = 3, *, trim: bool = True) -> str:
    """A count with an SI prefix and `digits` significant digits: `12.3 M`, `1.2 G`, `950`.

    Without `trim`, prefixed numbers keep their zeros (`39.0 M`), so that a column lines up.
    """
    if value is None:
        return MISSING
    for scale, prefix in _SI:
        # 999,950 would print as "1e+03 k": choose the prefix by the rounded value.
        if float(f"{abs(value):.{digits}g}") >= scale:
            return f"{_plain(value / scale, digits, trim)} {prefix}"
    return _plain(value, digits, trim=True)


def bytes_text(value: int | None) -> str:
    """A size in bytes with an SI prefix: `64 B`, `1.5 kB`, `2.1 MB`."""
    if value is None:
        return MISSING
    text = si(value)
    return f"{text}B" if " " in text else f"{text} B"


def _plain(value: float, digits: int, trim: bool) -> str:
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - len(str(int(abs(rounded)))))
    text = f"{rounded:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if trim and "." in text else text


def in_percent(metric: Metric) -> bool:
    """Whether the metric is written in percent, see `Task.percent`; also per offset from a key frame."""
    name = metric.name.partition("@")[0]
    return any(fnmatchcase(name, pattern) for pattern in metric.percent)


def metric_text(value: float | None, metric: Metric) -> str:
    """A metric's value: `93.1 %` where it is written in percent, else four significant digits."""
    if value is None:
        return MISSING
    if in_percent(metric) and abs(value) <= 1.0:
        return f"{value * 100:.1f} %"
    return f"{value:.4g}"


def range_text(low: float, high: float, metric: Metric) -> str:
    """The ends of an interval of a metric: `92.1 – 93.4 %`; of a share of 1 that part of it which there can be."""
    if in_percent(metric) and low <= 1 and high >= 0:
        return f"{max(low, 0.0) * 100:.1f} – {min(high, 1.0) * 100:.1f} %"
    return f"{low:.4g} – {high:.4g}"


def difference_text(value: float, metric: Metric) -> str:
    """The size of a difference between two values: `1.2 points` for percentages, else three significant digits."""
    if in_percent(metric) and abs(value) <= 1.0:
        return f"{abs(value) * 100:.1f} points"
    return f"{abs(value):.3g}"


def ms_text(value: float) -> str:
    """Milliseconds without their unit: three significant digits, from a thousand on whole ones."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def share_text(value: float) -> str:
    """A share of 1 with four decimals: `0.0312`, and `< 0.0001` where they would make nothing of something."""
    return "< 0.0001" if 0 < value < 0.00005 else f"{value:.4f}"


def fewer_or_more(saving: float) -> str:
    """How a cost compares with a teacher's that is `saving` times as high: `9.25× fewer`, `2.46× more`, `equal`."""
    if f"{max(saving, 1 / saving):.3g}" == "1":
        return "equal"
    return f"{saving:.3g}× fewer" if saving >= 1 else f"{1 / saving:.3g}× more"


def signed_text(value: float, metric: Metric) -> str:
    """A difference with its sign: `+1.2` points for percentages, else three significant digits."""
    text = f"{value * 100:+.1f}" if in_percent(metric) and abs(value) <= 1 else f"{value:+.3g}"
    return text.replace("-", "−")


def flops_label(records: Iterable[TrialRecord]) -> str:
    """What the FLOPs of these records are counted over: a clip, or for streaming students a frame, amortised."""
    streaming = {record.cost.is_streaming for record in records if record.cost is not None}
    if streaming == {True}:
        return "amortised FLOPs per frame"
    if streaming == {True, False}:
        return "FLOPs (per clip, or for streaming students amortised per frame)"
    return "FLOPs per clip"


def count(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def error_headline(text: str | None) -> str:
    """What went wrong in one line: the last exception of a traceback, else the first line of the text."""
    lines = [line.rstrip() for line in (text or "").splitlines() if line.strip()]
    tracebacks = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if tracebacks:
        after = lines[tracebacks[-1] + 1 :]
        # Frames are indented; the first line that is not names the exception.
        return next((line for line in after if not line[0].isspace()), lines[-1].strip())
    return lines[0].strip() if lines else ""
