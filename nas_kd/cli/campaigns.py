"""Commands that launch campaigns and watch them."""

from __future__ import annotations

import contextlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from nas_kd.cli.completion import SHELLS, commands_of
from nas_kd.cli.console import console, plain_errors, progress_bar, say, termination_is_interrupt
from nas_kd.cli.options import CampaignFile, Overrides


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
    """Write a campaign file for a folder of data, and check it. It has every key with its meaning."""
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


def check(file: CampaignFile = None, overrides: Overrides = None) -> None:
    """Check a campaign file and print what it means. Nothing is decoded or trained."""
    with plain_errors():
        from nas_kd.config import load_config
        from nas_kd.preflight.overview import overview

        for line in overview(load_config(file, overrides or ())):
            say(line)


def search(
    file: CampaignFile = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Rehearse it and time some steps: say what it takes, and run no trial.")
    ] = False,
) -> None:
    """Launch a campaign, or resume it. The same command after any crash goes on with what is missing."""
    with plain_errors(), termination_is_interrupt():
        from nas_kd.campaign import Campaign  # torch and the rest load after --help has been answered
        from nas_kd.config import load_config
        from nas_kd.runs import hypervolume
        from nas_kd.trials import Progress as TrialsProgress

        config = load_config(file, overrides or ())
        if dry_run:
            from nas_kd.campaign.dry_run import dry_run as try_out

            with progress_bar() as progress:
                lines = try_out(config, say, progress)
            for line in lines:
                say(line)
            return
        say(f"run folder: {config.run_dir}")
        with Campaign(config) as campaign:
            try:
                with progress_bar() as progress:
                    ledger = campaign.prepare(progress, say)
            except KeyboardInterrupt:  # as while trials run; the teacher goes on from its last epoch
                say("interrupted; run the same command again to continue")
                raise typer.Exit(130) from None
            shown = TrialsProgress(
                ledger.ranking,
                ledger.records(),
                works=ledger.works(),
                hypervolume=partial(hypervolume, ranking=ledger.ranking),
                console=console,
            )
            with shown as table:
                result = campaign.run(table)
        say(result.summary)
        if result.summary.num_complete and not table.front():
            limits = ", ".join(map(str, ledger.ranking.constraints))
            say(f"no complete trial keeps the constraints ({limits}), so the front is empty; loosen them or run more")
        say(f"next: nas-kd report {config.run_dir}")
        if config.grid:
            say(f"      nas-kd table {config.run_dir}")
    if result.summary.interrupted:
        raise typer.Exit(130)
    if result.summary.num_complete == 0:
        raise typer.Exit(1)


def status(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until the campaign ends or stops.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON and nothing else.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Of --watch: seconds between two looks.")] = 5.0,
) -> None:
    """Say how a campaign stands, while it runs or after. Shows trials, front, hypervolume and the time left."""
    with plain_errors():
        from nas_kd import runs as run_folders
        from nas_kd.runs.status import render

        with contextlib.suppress(KeyboardInterrupt):
            shown = Live(console=console) if watch and console.is_terminal and not as_json else contextlib.nullcontext()
            with shown as live:
                while True:
                    found = run_folders.status(run)
                    if as_json:
                        say(found.to_json())
                    elif live is not None:
                        live.update(render(found), refresh=True)
                    else:
                        console.print(render(found))
                    if not watch or found.state in ("complete", "interrupted"):
                        break
                    time.sleep(interval)


def doctor(file: CampaignFile = None, overrides: Overrides = None) -> None:
    """Look for what would get in the way of a campaign. Versions, GPUs, memory, decoders, disk, database, cluster."""
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
    """Print the JSON schema of campaign files. Editors complete and check keys by it."""
    with plain_errors():
        from nas_kd.preflight.schema import campaign_schema

        say(json.dumps(campaign_schema(), indent=1))


def completion(
    context: typer.Context, shell: Annotated[str, typer.Argument(help=f"One of {', '.join(SHELLS)}.")]
) -> None:
    """Print the script by which a shell completes commands."""
    with plain_errors():
        if shell not in SHELLS:
            raise ValueError(f"completion: {shell!r} is unknown; choose from {', '.join(SHELLS)}")
        assert context.parent is not None, "it is a command of a group"
        say(SHELLS[shell](commands_of(context.parent.command)).rstrip())


COMMANDS = (init, check, search, status, doctor, schema, completion)
