"""Checks of the file that students start from."""

from __future__ import annotations

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.preparation.nets import build_nets
from nas_kd.preparation.proposals import corner_knobs
from nas_kd.teachers.weights import match_weights
from nas_kd.trial import CampaignContext

NAMED = 3  # parameters of a student that are named as examples


def check_start(config: CampaignConfig, context: CampaignContext) -> list[str]:
    """Raise where the file at `retrain.weights` has nothing for any student that is looked at.

    These are the widest and the narrowest one, with the smallest and the largest knobs of the space.

    Returns:
        Sentences on what of the file fits, and on what was done to its names.

    Raises:
        ConfigError: the rule and the way out.
    """
    path = config.retrain.weights
    if path is None:
        return []
    if config.space.is_derived:
        raise ConfigError(
            f"retrain.weights: students of space {config.space.name!r} begin with the teacher's layers; leave it out"
        )
    notes: dict[str, None] = {}
    corners = {str(knobs): knobs for knobs in corner_knobs(context.space)}
    students = [student for knobs in corners.values() for student in build_nets(context, knobs).students]
    try:
        matches = [match_weights(student, path, "retrain.weights", notes.setdefault) for student in students]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    best = max(matches, key=lambda match: match.share)
    if best.share == 0:
        names = ", ".join(name for name, _ in list(students[0].named_parameters())[:NAMED])
        raise ConfigError(
            f"retrain.weights: no parameter of {path} has the name and the shape of one of a student's ({names}, …); "
            "give the weights of such a net, or leave it out"
        )
    least = min(match.share for match in matches)
    return [
        *notes,
        f"retrain.weights: students start from {path}, which has {least:.0%} to {best.share:.0%} of their parameters "
        f"by name and shape (at most {best.text}); the rest starts from random weights",
    ]
