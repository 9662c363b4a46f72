"""`ArchSpec`: canonical, hashed by content, immutable, readable for ever."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_kd.search_spaces import SPACES, ArchSpec

GOLDEN = Path(__file__).parent / "golden" / "arch_v1.json"
choices = st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=8)), max_size=6)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
specs = st.builds(ArchSpec, st.text(max_size=10), st.dictionaries(st.text(max_size=8), json_values), choices)


@given(specs)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_round_trips(spec: ArchSpec) -> None:
    for copy in (
        ArchSpec.from_json(spec.to_json()),
        ArchSpec.from_dict(json.loads(json.dumps(spec.as_dict()))),
        pickle.loads(pickle.dumps(spec)),
    ):
        assert copy == spec
        assert hash(copy) == hash(spec)
        assert copy.arch_id == spec.arch_id


@given(choices, st.randoms(use_true_random=False))
@settings(deadline=None, derandomize=True)
def test_the_order_of_choices_has_no_part_in_the_identity(values: dict[str, Any], random: Any) -> None:
    items = list(values.items())
    random.shuffle(items)
    one, other = ArchSpec("s", {"a": 1, "b": [2]}, values), ArchSpec("s", {"b": (2,), "a": 1}, dict(items))
    assert one == other
    assert one.arch_id == other.arch_id
    assert one.to_json() == other.to_json()


@given(specs, specs)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_equal_ids_mean_equal_specs(one: ArchSpec, other: ArchSpec) -> None:
    assert (one.arch_id == other.arch_id) == (one == other)


def test_a_stored_spec_still_loads_with_its_id() -> None:
    stored = json.loads(GOLDEN.read_text())
    arch = ArchSpec.from_dict(stored["arch"])
    assert arch.arch_id == stored["arch_id"]
    assert arch.as_dict() == stored["arch"]
    space = SPACES[arch.space].make(arch.settings)
    assert space.contains(arch)
    assert space.cost(arch) == stored["flops"]


def test_nothing_can_be_changed_afterwards() -> None:
    given_settings, given_choices = {"widths": [[1, 2]]}, {"a": 1}
    arch = ArchSpec("s", given_settings, given_choices)
    before = arch.arch_id
    given_settings["widths"][0].append(3)
    given_choices["a"] = 2
    arch.as_dict()["choices"]["a"] = 2
    assert arch.arch_id == before
    assert arch.settings["widths"] == ((1, 2),)
    for attempt in (
        lambda: arch.settings.update(widths=1),  # type: ignore[attr-defined]
        lambda: arch.choices.update(a=2),  # type: ignore[attr-defined]
        lambda: setattr(arch, "space", "t"),
        lambda: arch.settings["widths"][0].append(3),
    ):
        with pytest.raises(AttributeError):
            attempt()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"schema_version": 2, "space": "s", "settings": {}, "choices": {}}, "schema 1, but this one has 2"),
        ({"schema_version": 1, "space": "s", "settings": {}}, r"missing: \['choices'\]"),
        ({"schema_version": 1, "space": 3, "settings": {}, "choices": {}}, "space of an architecture must be a str"),
        ({"schema_version": 1, "space": "s", "settings": {}, "choices": []}, "choices of an architecture must be"),
        ({"schema_version": 1, "space": "s", "settings": {}, "choices": {"a": 0.5}}, "'a' is 0.5"),
        ({"schema_version": 1, "space": "s", "settings": {}, "choices": {"a": True}}, "'a' is True"),
        ({"schema_version": 1, "space": "s", "settings": {"x": float("nan")}, "choices": {}}, "JSON compliant"),
    ],
)
def test_what_is_no_spec_is_refused(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ArchSpec.from_dict(value)


@pytest.mark.parametrize("text", ["[]", "3", "{"])
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON object|Expecting"):
        ArchSpec.from_json(text)
