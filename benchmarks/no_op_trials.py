"""Trials that do nothing, for benchmarks of what surrounds trials."""

from __future__ import annotations

from nas_kd.trials import ChoiceKnob, Cost, FloatKnob, IntKnob, KnobSpace, Metric, TrialContext, TrialRecord

METRIC = Metric(name="accuracy")
SPACE: KnobSpace = {
    "width": IntKnob(low=1, high=64),
    "rate": FloatKnob(low=1e-3, high=1.0, log=True),
    **{f"op{i}": ChoiceKnob(values=("conv", "shift", "delta")) for i in range(8)},
}


def no_op(context: TrialContext) -> TrialRecord:
    """A trial whose metric and cost follow from its knobs."""
    width = int(context.knobs["width"])
    return TrialRecord(
        number=context.number,
        state="complete",
        seed=context.seed,
        config_hash="benchmark",
        knobs=context.knobs,
        metric=METRIC,
        cost=Cost(flops=width * 1000, params=width),
        metrics={"derived": {"val": {"accuracy": (width / 64) ** 0.5 - float(context.knobs["rate"]) / 10}}},
    )
