"""Sections of a campaign file on training and evaluation, each a typed, documented model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nas_kd.data import DataInfo
from nas_kd.data.framing import Cut, evaluation_cuts
from nas_kd.objectives import ObjectiveConfig
from nas_kd.settings.strict import Section
from nas_kd.training.settings import FitConfig, GateConfig, LocalConfig, TrainingConfig


class SearchConfig(FitConfig):
    """The gate search of a trial: how weights train, the `gates`, and the `objective` of the search.

    The search has an objective of its own: its candidates learn fast from maps, which a student that trains alone needs
    less (docs/objectives.md). `local` is how a search over delta layers begins.

    Attributes:
        shared: one search for all budgets and knobs of the campaign, before its trials, which then are architectures
            (docs/search.md). false, the default of campaigns with a grid or with knobs of the search: each trial
            searches for its own budget.
        paths: architectures that a step of the shared search trains, on the same batch.
        candidates: architectures at each budget whose inherited weights are compared before the best one is trained.
        finish: share of the epochs, the last ones, in which the gates are fixed and only the candidates of all budgets
            train: their weights then serve few architectures, and comparing them says more.
    """

    epochs: int = Field(default=16, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=5e-3, gt=0)
    gates: GateConfig = GateConfig()
    local: LocalConfig = LocalConfig()
    shared: bool = True
    paths: int = Field(default=2, ge=1)
    candidates: int = Field(default=4, ge=1)
    finish: float = Field(default=0.5, ge=0, lt=1)
    objective: ObjectiveConfig = ObjectiveConfig.of(response=1.0, feature=10.0)

    @model_validator(mode="after")
    def _all_gates_learn(self) -> SearchConfig:
        self.objective.check_search()
        return self


class RetrainConfig(TrainingConfig):
    """Training of the derived student.

    Attributes:
        init: `inherit` the supernet's weights, or start `fresh`, which is the default with `weights`.
        weights: a file, safetensors or a checkpoint of `torch.save`, that students start from where its tensors have
            the name and the shape of theirs.
        num_seeds: trainings with different seeds; the report shows the interval over them, and the weights of the best
            one on the validation split are exported.
        compile: whether the student trains through `torch.compile`, on a GPU as captured graphs. It takes tens of
            seconds a training before the first step, so it is for long ones. Supernets are never compiled: each of
            their steps runs another path.
    """

    lr: float = Field(default=5e-3, gt=0)
    init: Literal["inherit", "fresh"] = "inherit"
    weights: Path | None = None
    num_seeds: int = Field(default=1, ge=1)
    compile: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fresh_with_weights(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("weights") is not None and value.get("init") is None:
            return {**value, "init": "fresh"}
        return value

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.weights is not None and self.init == "inherit":
            raise ValueError(
                "weights start students from a file, and init: inherit from the search; set init: fresh, or leave "
                "weights out"
            )
        return self


class EvaluationConfig(Section):
    """How nets are evaluated.

    Attributes:
        batch_size: items of a batch in evaluation (of frame-wise tasks, clips, and frames that a net sees at once), and
            inputs of the teacher at once where its outputs are cached. null: as `retrain.batch_size`, at most 64, of
            frame-wise tasks 8.
        clips: windows in time of each item, whose logits are averaged; of teacher and students alike.
        window: their length, in shares of the stored clip; 1: each clip spans all of it, with other frames.
        crops: windows of the frame of each, 1 (the middle) or 3 (along the longer side).
    """

    batch_size: int | None = Field(default=None, ge=1)
    clips: int = Field(default=1, ge=1)
    window: float = Field(default=1.0, gt=0, le=1)
    crops: Literal[1, 3] = 1

    @property
    def views(self) -> int:
        """How many views of each item are averaged."""
        return self.clips * self.crops

    @property
    def is_plain(self) -> bool:
        """Whether nets see one view of each item: frames from all of it, and the middle."""
        return self.views == 1 and self.window == 1

    def cuts(self, info: DataInfo) -> tuple[Cut, ...]:
        """The parts of each clip that nets are evaluated on; empty where they see one view, as without these keys.

        Args:
            info: of the data.

        Raises:
            DataError: too little of a clip is stored.
        """
        if self.is_plain or not info.height:
            return ()
        return evaluation_cuts(info.stored, info.seen, clips=self.clips, window=self.window, crops=self.crops)


class EarlyStoppingConfig(Section):
    """Stops trials that after a rung of retraining are in the worse part by the objectives, by non-dominated rank.

    Attributes:
        rungs: epochs of the retraining at which trials are compared, ascending.
        reduction_factor: above 1; 3 continues about a third.
    """

    rungs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    reduction_factor: float = Field(default=3.0, gt=1)

    @model_validator(mode="after")
    def _ascending(self) -> EarlyStoppingConfig:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must ascend without repetition, but are {list(self.rungs)}")
        return self
