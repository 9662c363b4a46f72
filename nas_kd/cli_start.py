"""The commands before a campaign runs: init, check, doctor, schema, completion."""

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
        from nas_kd.config import load_config
        from nas_kd.preflight.overview import overview

        for line in overview(load_config(file, overrides or ())):
            say(line)


def init(
    file: Annotated[Path, typer.Argument(help="Campaign file to write.")] = Path("campaign.yaml"),
    data: Annotated[
        Path | None, typer.Option(help="Folder with labels.csv, or with .tfrecord files; without it, generated clips.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What students are trained for; by default what such data are mostly for.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a campaign file for a folder of data, with the meaning of each key, and check it."""
    with plain_errors():
        if file.exists() and not force:
            raise ValueError(f"{file} is there already; give another name, or --force")
        from nas_kd.config import load_config
        from nas_kd.preflight.overview import overview
        from nas_kd.preflight.starter import starter_file

        file.write_text(starter_file(str(file), task, data), encoding="utf-8")
        say(f"written: {file}")
        for line in overview(load_config(file)):
            say(line)
        say(f"next: nas-kd search {file} --dry-run")


def doctor(file: CampaignFile = None, overrides: Overrides = None) -> None:
    """Look for what would get in the way: versions, GPUs, memory, decoders, disk, a campaign's database and cluster."""
    with plain_errors():
        from nas_kd.config import load_config
        from nas_kd.preflight.doctor import diagnose

        failed = False
        for finding in diagnose(load_config(file, overrides or ())):
            say(f"{finding.state:<4}  {finding.name}: {finding.text}")
            failed = failed or finding.state == "fail"
    if failed:
        raise typer.Exit(1)


def schema() -> None:
    """Print the JSON schema of campaign files, by which editors complete and check keys."""
    with plain_errors():
        from nas_kd.preflight.schema import campaign_schema

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
    for command in (init, check, doctor, schema, completion):
        app.command()(command)
