"""`TrialFunction`: the function that the runner executes for each trial."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nas_kd.trial.architecture_trial import ArchitectureTrial
from nas_kd.trial.context import CampaignContext, load_context
from nas_kd.trial.memory import is_out_of_gpu_memory, peak_bytes, release_memory, start_measuring, usable_bytes
from nas_kd.trial.search_trial import SearchTrial
from nas_kd.trial.shared import SharedSearch, load_search
from nas_kd.trials import TrialContext, TrialRecord
from nas_kd.trials.context import GPU_PEAK, GPU_USABLE, OutOfGpuMemoryError


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
        """Run the trial of `context`, or continue it from its checkpoints.

        Raises:
            OutOfGpuMemoryError: the GPU has too little memory left.
        """
        os.chdir(self.working_dir)
        torch.set_num_threads(context.num_cpus)
        start_measuring(context.device)
        record, shortage = None, ""
        try:
            record = self._run(context)
        except Exception as error:
            if not is_out_of_gpu_memory(error):
                raise
            shortage = str(error).splitlines()[0]
        finally:
            # After the error has gone, whose traceback holds the tensors of the trial.
            peak = peak_bytes(context.device)
            release_memory()
        if record is None:
            raise OutOfGpuMemoryError(
                f"the GPU has too little memory for this trial, which had taken {peak / 1e9:.1f} GB ({shortage}); set "
                "smaller batches",
                peak,
            )
        if context.device == "cpu":
            return record
        usable = {GPU_USABLE: usable_bytes(context.device)} if context.num_gpus == 1 else {}
        return record.with_remarks({GPU_PEAK: peak, **usable})

    def _run(self, context: TrialContext) -> TrialRecord:
        campaign = load_context(self.config_json, self.run_dir, context.device)
        search = load_search(self.config_json, self.run_dir, context.device) if campaign.shares_search else None
        return run_trial(campaign, context, search)


def run_trial(campaign: CampaignContext, context: TrialContext, search: SharedSearch | None) -> TrialRecord:
    """Run one trial, or continue it from its checkpoints.

    Args:
        campaign: data, teacher and space.
        context: number, knobs, seed, folder.
        search: that trials share; None where each searches by itself.
    """
    config = campaign.config.with_knobs(context.knobs)
    if search is None:
        return SearchTrial(campaign, config, context).run()
    return ArchitectureTrial(campaign, config, context, search=search).run()
