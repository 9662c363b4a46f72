"""Data, space and an untrained teacher of a campaign, with all that can be checked of them before a training."""

from __future__ import annotations

import torch

from nas_kd.callbacks import Note, no_note
from nas_kd.config import CampaignConfig
from nas_kd.preflight.checks import check_items, check_nets, nets_depend_on
from nas_kd.preflight.file_checks import check_file
from nas_kd.preparation.pairs import describe_left_out_layers, describe_pairs
from nas_kd.search_spaces.cpu_convolutions import describe_check
from nas_kd.trial import CampaignContext, build_context
from nas_kd.trial.context import with_decoded_data


def checked_context(config: CampaignConfig, note: Note = no_note) -> CampaignContext:
    """Data, space and an untrained teacher of a campaign that can work.

    Args:
        config: of the campaign.
        note: called with a sentence on each decision.

    Raises:
        ConfigError, ValueError: the campaign cannot work; nothing was trained.
    """
    check_file(config)
    device = "cuda" if config.resources.use_gpus and torch.cuda.is_available() else "cpu"
    if device == "cpu" and (text := describe_check()):
        note(text)
    outlined = build_context(config, device, decode=False)
    sentences = check_nets(config, outlined)
    context = with_decoded_data(outlined)
    if nets_depend_on(context) != nets_depend_on(outlined):
        sentences = check_nets(config, context)
    sentences += [*describe_left_out_layers(context.space.left_out), *describe_pairs(context.pairs)]
    for text in [*check_items(context), *sentences]:
        note(text)
    return context
