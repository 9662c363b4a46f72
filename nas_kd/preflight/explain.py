"""What an exception of the user's code, or of a library below it, means for a campaign: one sentence with the stage,
the line of the user's code and the key to change.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from nas_kd.config import ConfigError
from nas_kd.deploy.export import ExportError, export_student
from nas_kd.preparation.shared import prepare_search
from nas_kd.search_spaces import count_flops
from nas_kd.settings.user_code import is_ours, users_line
from nas_kd.teachers.weights import load_weights
from nas_kd.training.evaluate import evaluate
from nas_kd.training.fit import fit
from nas_kd.training.gate_search import search_gates
from nas_kd.training.shared_search import search_shared

_DOING = {
    fit: "training",
    evaluate: "evaluation",
    count_flops: "counting FLOPs",
    load_weights: "loading weights",
    search_gates: "the search",
    search_shared: "the search",
    prepare_search: "the search",
    export_student: "export",
}
"""What was going on, by the functions of a traceback; the innermost one decides."""


@contextmanager
def with_place(stage: str) -> Iterator[None]:
    """Within this context, exceptions of the user's code become a `ConfigError` with the line; others stay as they are.

    Args:
        stage: of the campaign.

    Raises:
        ConfigError: an exception was raised in code that is not of this package.
    """
    try:
        yield
    except Exception as error:
        if _is_sentence(error) or isinstance(error, OSError) or not users_line(error):
            raise
        with explained(stage, "correct it and run the same command again, which goes on from there"):
            raise


@contextmanager
def explained(stage: str, way_out: str, what: str = "", *, hidden: str = "") -> Iterator[None]:
    """Within this context, exceptions become a `ConfigError` of one sentence.

    Args:
        stage: of the campaign.
        way_out: what to change, where the exception does not say it.
        what: is done; by default it follows from the exception.
        hidden: text that the sentence leaves out.

    Raises:
        ConfigError: an exception was raised.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        doing = what or _doing(error)
        during = f" ({doing})" if doing else ""
        reason = reason_of(error)
        reason = reason.replace(hidden, "") if hidden else reason
        raise ConfigError(f"{stage}{during}: {reason}{_advice(error, way_out)}") from error


def _doing(error: BaseException) -> str:
    """What was going on when an exception was raised."""
    names = {function.__code__: words for function, words in _DOING.items()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = names.get(frame.f_code, found)
    return found


def _is_sentence(error: BaseException) -> bool:
    """Whether an exception has a sentence of this package for the user, and not one of a library or of the user's."""
    if isinstance(error, ExportError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError | FloatingPointError) and is_ours(frames[-1].filename)


def reason_of(error: BaseException) -> str:
    """What an exception says in one line, with the line of the user's code that raised it."""
    text = " ".join(str(error).split())
    if len(text) > 400:
        text = f"{text[:400]}…"
    if _is_sentence(error):
        return text
    where = users_line(error)
    return f"{type(error).__name__}{where}: {text}" if text else f"{type(error).__name__}{where}"


def _advice(error: BaseException, way_out: str) -> str:
    """What to change, where the sentence does not say it."""
    return "" if _is_sentence(error) and ";" in str(error) else f"; {way_out}"
