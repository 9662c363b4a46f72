"""`TrialFunction`: the function that the runner executes for each trial."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nas_kd.trial.architecture_trial import ArchitectureTrial
from nas_kd.trial.context import load_context
from nas_kd.trial.memory import release_memory
from nas_kd.trial.search_trial import SearchTrial
from nas_kd.trial.shared import load_search
from nas_kd.trials import TrialContext, TrialRecord


@dataclass
class TrialFunction:
    """What the runner executes: picklable, and without anything heavy inside.

    Args:
        config_json: config of the campaign as text; classes of the user's in it are found in `working_dir`.
        run_dir: the run's folder, where the teacher is.
        working_dir: where relative paths of the config begin and own modules are found; a worker starts elsewhere.
    """

    config_json: str
    run_dir: Path
    working_dir: Path = field(default_factory=Path.cwd)

    def __call__(self, context: TrialContext) -> TrialRecord:
        """Run the trial of `context`, or continue it from its checkpoints."""
        os.chdir(self.working_dir)
        torch.set_num_threads(context.num_cpus)
        try:
            return self._run(context)
        finally:
            release_memory()

    def _run(self, context: TrialContext) -> TrialRecord:
        campaign = load_context(self.config_json, self.run_dir, context.device)
        config = campaign.config.with_knobs(context.knobs)
        if not campaign.shares_search:
            return SearchTrial(campaign, config, context).run()
        search = load_search(self.config_json, self.run_dir, context.device)
        return ArchitectureTrial(campaign, config, context, search=search).run()
