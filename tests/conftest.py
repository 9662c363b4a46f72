"""The order of the tests, and what a run of all of them saves by not looking at the same objects again and again."""

from __future__ import annotations

import gc
import logging

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on Ray come first: they take longest, and where they share a Ray session they must follow each other."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def pytest_collection_finish() -> None:
    """What is there by now, modules and the tests themselves, stays: Python need not look for garbage in it."""
    gc.collect()
    gc.freeze()


def pytest_runtestloop() -> None:
    """pytest gives a handler to each logger that does not propagate; this one of torch then composes and keeps traces
    of every step of an export."""
    logging.getLogger("torch.__trace").propagate = True
