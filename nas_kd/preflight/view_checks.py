"""Checks of how the data are shown: augmentation, mixed clips, clips and crops of the evaluation."""

from __future__ import annotations

from math import ceil

from nas_kd.config import CampaignConfig, ConfigError, read_path
from nas_kd.data import Augment, DataError, DataInfo
from nas_kd.data.augment import fits_features, refusal_of_features
from nas_kd.data.augment_config import section_of
from nas_kd.preparation.proposals import proposals
from nas_kd.teachers import is_precomputed
from nas_kd.trial import CampaignContext


def check_views(config: CampaignConfig, context: CampaignContext) -> list[str]:
    """Raise where the data cannot be shown as the trainings ask for.

    Returns:
        Sentences about what works, but may not be meant.

    Raises:
        ConfigError: the key, the rule and the way out.
    """
    _check_augment(config, context.splits.info)
    return [*_check_mix(config, context), *_check_evaluation(config, context)]


def _check_augment(config: CampaignConfig, info: DataInfo) -> None:
    used: list[tuple[str, Augment]] = [
        ("teacher.fit.augment", config.teacher.fit.augment),
        ("search.augment", config.search.augment),
        ("retrain.augment", config.retrain.augment),
    ]
    for path, definition in config.knobs.items():
        section = path.partition(".augment")[0]
        if section in ("search", "retrain") and path.startswith(f"{section}.augment"):
            values = definition["values"] if "values" in definition else (definition["low"], definition["high"])
            changed = [config.with_knobs({path: value}) for value in values]
            used += [(f"knobs.{path}", read_path(each, f"{section}.augment")) for each in changed]
    for path, value in used:
        _check_one_augment(path, value, info, config.data.stored_by)


def _check_one_augment(path: str, value: Augment, info: DataInfo, stored_by: str) -> None:
    section = section_of(value)
    if section is None:
        return
    shown = repr(value) if isinstance(value, str) else "flip"
    if not info.height and not fits_features(section):
        raise ConfigError(f"{path}: {refusal_of_features(section)}")
    if section.temporal is not None:
        _check_window(f"{path}.temporal.window", section.temporal.window[0], info, stored_by)
    if info.points and (section.crop or section.resized_crop):
        what = repr(value) if isinstance(value, str) else "a crop"
        raise ConfigError(
            f"{path}: {what} resamples labels, but of fixation points (data.points) that loses some and doubles "
            "others; use flip or none"
        )
    if not info.flip_safe and section.flip:
        way_out = "use none" if isinstance(value, str) else "set flip: false"
        raise ConfigError(
            f"{path}: {shown} mirrors clips, but in this data a mirrored clip may change its class; {way_out}"
        )


def _check_mix(config: CampaignConfig, context: CampaignContext) -> list[str]:
    """Raise where clips are to be mixed whose labels or stored maps cannot be.

    Returns:
        A sentence for each training that runs the teacher in every step, because outputs of mixed clips are not kept.
    """
    used = {"teacher.fit": config.teacher.fit.mix}
    for proposal in proposals(config, context.space):
        for section, mix in (("search", proposal.config.search.mix), ("retrain", proposal.config.retrain.mix)):
            if mix.is_on or section not in used:
                used[section] = mix
    info, sentences = context.splits.info, []
    for section, mix in used.items():
        if not mix.is_on:
            continue
        if not context.task.mixes:
            raise ConfigError(f"{section}.mix: the task {config.task} cannot mix its labels; leave mix out")
        if info.map_names or is_precomputed(context.teacher_model):
            raise ConfigError(f"{section}.mix: maps that come with the data are those of whole clips; leave mix out")
        if mix.cutmix and not info.height:
            raise ConfigError(f"{section}.mix.cutmix: it pastes pixels, which frame features lack; take mixup")
        objective = config.objective if section == "retrain" else config.search.objective
        if section != "teacher.fit" and objective.distils:
            sentences.append(f"{section}.mix: teacher outputs of mixed clips are not kept; each step runs the teacher")
    return sentences


def _check_window(path: str, share: float, info: DataInfo, stored_by: str) -> None:
    """Raise where a window in time has fewer stored frames than nets see, so that frames would repeat."""
    stored = info.stored[0]
    if share * stored < info.frames - 1e-9:
        way_out = "leave temporal out: this source has no more frames than nets see"
        if stored_by:
            way_out = f"store at least {ceil(info.frames / share - 1e-9)} (by {stored_by}), or raise it"
        raise ConfigError(
            f"{path}: {share:g} of an item of {stored} stored frames has fewer than the {info.frames} that nets see; "
            f"{way_out}"
        )


def _check_evaluation(config: CampaignConfig, context: CampaignContext) -> list[str]:
    """Raise where clips and crops of the evaluation cannot be had of these data, or their outputs not be averaged.

    Returns:
        A sentence on what is evaluated, where it is not the clip as a whole.
    """
    evaluation = config.evaluation
    if evaluation.is_plain:
        return []
    if not context.splits.info.height:
        raise ConfigError("evaluation: frame features are seen whole; leave out clips, window and crops")
    if context.input_type.outputs_are_maps(type(context.task)):
        raise ConfigError(
            f"evaluation: outputs of the task {config.task} are maps, and those of other frames and crops cannot be "
            "averaged; leave out clips, window and crops"
        )
    if context.splits.info.consecutive:
        raise ConfigError("evaluation: windows of consecutive frames are seen whole; leave out clips, window and crops")
    try:
        number = len(evaluation.cuts(context.splits.info))
    except DataError as error:
        by = config.data.stored_by
        if "stored_size" in type(config.data).model_fields:
            by += " and data.stored_size"
        more = f"store more (by {by}), or change" if by else "this source stores no more than nets see, so leave out"
        raise ConfigError(f"evaluation: {error}; {more} clips, window and crops") from error
    return [
        f"evaluation: the logits of {number} views of each item are averaged, {evaluation.clips} clips × "
        f"{evaluation.crops} crops; FLOPs and latencies are those of one view"
    ]
