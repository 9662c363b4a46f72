from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from nas_kd.trials import ChoiceKnob, FloatKnob, IntKnob, parse_knobs
from nas_kd.trials.knobs import check_values, to_distributions


def test_definitions_become_distributions() -> None:
    space = parse_knobs(
        {
            "op": {"type": "choice", "values": ["a", 1, 2.5, False]},
            "width": {"type": "int", "low": 8, "high": 64, "step": 8},
            "frames": {"type": "int", "low": 1, "high": 64, "log": True},
            "rate": {"type": "float", "low": 0.1, "high": 1, "log": True},
        }
    )
    assert to_distributions(space) == {
        "op": CategoricalDistribution(["a", 1, 2.5, False]),
        "width": IntDistribution(8, 64, step=8),
        "frames": IntDistribution(1, 64, log=True),
        "rate": FloatDistribution(0.1, 1.0, log=True),
    }


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({"type": "choice", "values": []}, "knob x.choice.values: Tuple should have at least 1 item"),
        ({"type": "choice", "values": [1, True]}, "`values` must be distinct, but got True twice"),
        ({"type": "choice", "values": [float("nan")]}, "`values` must be finite"),
        ({"type": "int", "low": 3, "high": 2}, "`low <= high` must hold, but got low=3, high=2"),
        ({"type": "int", "low": 1, "high": 9, "step": 3}, "use high=7"),
        ({"type": "int", "low": 0, "high": 9, "log": True}, "`low` must be positive"),
        ({"type": "int", "low": 1, "high": 9, "step": 2, "log": True}, "`step` must be 1 where `log` is true"),
        ({"type": "int", "low": 1, "high": 9, "default": 10}, "`default` must be a value of the knob, but got 10"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "`low` must be positive"),
        ({"type": "float", "low": 0, "high": float("inf")}, "knob x.float.high: Input should be a finite number"),
        ({"type": "float", "low": 0, "high": 1, "step": 0.1}, "knob x.float.step: Extra inputs are not permitted"),
        ({"type": "choise", "values": [1]}, "'choice', 'int', 'float'"),
    ],
)
def test_wrong_definition_gives_one_sentence(definition: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="knob x") as raised:
        parse_knobs({"x": definition})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.one_of(st.integers(-5, 20), st.floats(-5, 20), st.booleans(), st.text(max_size=2), st.none()))
def test_contains_is_what_the_definition_says(value: object) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    assert IntKnob(low=2, high=10, step=4).contains(value) == (is_int and value in (2, 6, 10))
    is_number = is_int or isinstance(value, float)
    assert FloatKnob(low=2, high=10).contains(value) == (is_number and 2 <= value <= 10)  # type: ignore[operator]
    assert ChoiceKnob(values=("a", "b")).contains(value) == (value in ("a", "b"))


def test_values_are_checked_against_the_space() -> None:
    space = parse_knobs({"op": {"type": "choice", "values": ["a", "b"]}, "width": {"type": "int", "low": 1, "high": 9}})
    check_values({"width": 9}, space)
    with pytest.raises(ValueError, match="unknown knob 'depth'; choose from op, width"):
        check_values({"depth": 1}, space)
    with pytest.raises(ValueError, match="knob 'op' cannot be 'c'; its definition is one of a, b"):
        check_values({"op": "c"}, space)
    with pytest.raises(ValueError, match="knob 'width' cannot be 10; its definition is int from 1 to 9"):
        check_values({"width": 10}, space)
