"""The commands before a campaign runs: check, schema, completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nas_kd.completion import SHELLS, commands_of
from nas_kd.console import plain_errors, say

CampaignFile = Annotated[Path | None, typer.Argument(help="Campaign file (YAML); without it, the embedded default.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a key of the file; repeatable.")
]


def check(file: CampaignFile = None, overrides: Overrides = None) -> None:
    """Check a campaign file and print what it means, before anything is decoded or trained."""
    with plain_errors():
        from nas_kd.campaign.overview import overview
        from nas_kd.config import load_config

        for line in overview(load_config(file, overrides or ())):
            say(line)


def schema() -> None:
    """Print the JSON schema of campaign files, by which editors complete and check keys."""
    with plain_errors():
        from nas_kd.campaign.schema import campaign_schema

        say(json.dumps(campaign_schema(), indent=1))


def completion(
    context: typer.Context, shell: Annotated[str, typer.Argument(help=f"One of {', '.join(SHELLS)}.")]
) -> None:
    """Print the script with which a shell completes commands and options."""
    with plain_errors():
        if shell not in SHELLS:
            raise ValueError(f"completion: {shell!r} is unknown; choose from {', '.join(SHELLS)}")
        assert context.parent is not None, "it is a command of a group"
        say(SHELLS[shell](commands_of(context.parent.command)).rstrip())


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (check, schema, completion):
        app.command()(command)
