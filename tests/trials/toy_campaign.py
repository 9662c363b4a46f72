"""A campaign as a process of its own, to be killed: toy_campaign.py RUN_DIR EXECUTOR NUM_TRIALS."""

from __future__ import annotations

import sys
from pathlib import Path

from toy_trials import SPACE, open_ledger, wait_twice

from nas_kd.trials import Event, Resources, run_trials


def announce(event: Event) -> None:
    if event.kind == "ended":
        with (run_dir / "announced.log").open("a") as file:
            file.write(f"{event.number}\n")


if __name__ == "__main__":
    run_dir = Path(sys.argv[1])
    with open_ledger(run_dir) as ledger:
        print(
            run_trials(
                wait_twice,
                ledger,
                SPACE,
                num_trials=int(sys.argv[3]),
                run_dir=run_dir,
                # One trial at a time, so that the kill comes at the same point each time.
                resources=Resources(executor="ray" if sys.argv[2] == "ray" else "inline", max_concurrent=1),
                on_event=announce,
            )
        )
