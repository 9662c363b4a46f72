"""A trial of a proposed architecture, whose weights come from the search that all trials share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from nas_kd.search_spaces import ArchSpec
from nas_kd.search_spaces.arch import Choice
from nas_kd.trial.shared import SharedSearch
from nas_kd.trial.study_values import study_choices
from nas_kd.trial.trial import Derived, Trial


@dataclass
class ArchitectureTrial(Trial):
    """A trial whose architecture was proposed by the study.

    Args:
        search: of the campaign, done.
    """

    search: SharedSearch = field(kw_only=True)

    @cached_property
    def arch(self) -> ArchSpec:
        """What the study proposed."""
        return self.campaign.space.arch(study_choices(self.context.knobs, self.campaign.space))

    @property
    def knobs(self) -> dict[str, Choice]:
        """The space's knobs of the architecture."""
        return self.campaign.space.knobs_of(self.arch)

    @property
    def is_open(self) -> bool:
        """The weights to inherit are those of the shared search."""
        return True

    @property
    def choice_share(self) -> float:
        """The search was done before."""
        return 0.0

    def choose(self) -> Derived:
        """The proposed architecture with the supernet's weights."""
        arch = self.arch
        self.diagnostics |= self.search.remarks(arch)
        return Derived(arch, self.search.student(arch).to(self.campaign.device), self.search.adapters_of(arch))
