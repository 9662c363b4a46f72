"""How nets are trained and searched: sections of the campaign file."""

from __future__ import annotations

from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from nas_kd.data import Augment, MixConfig
from nas_kd.search_spaces import ESTIMATORS, TemperatureSchedule
from nas_kd.settings.strict import Section
from nas_kd.training.precision import Precision

Schedule = Literal["cosine", "linear", "step", "constant", "one_cycle"]


class FitConfig(Section):
    """How a net is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: clips a step.
        optimizer: `adamw`, or `sgd` with momentum 0.9.
        lr: peak learning rate, reached after the warm-up.
        schedule: of the learning rate after the warm-up: `cosine` to 0; `linear` to 0; `step`, a tenth of it after one
            half and another tenth after three quarters of the steps; `constant`; or `one_cycle`, which also rises by a
            cosine, from a 25th (Smith and Topin, arXiv:1708.07120, with the cosines of torch's `OneCycleLR`).
        warmup: share of the steps in which the learning rate rises, linearly but for `one_cycle`.
        weight_decay: on weights of two or more dimensions; biases and BatchNorm have none.
        clip_norm: largest norm of the gradient; the norm is cut to it.
        augment: `none`, `flip`, `flip+crop`, or a section (`nas_kd.data.AugmentConfig`), equal for all frames of a
            clip.
        mix: whether and how the clips of a batch are mixed. Teacher and student see the same mixed clip, so the teacher
            runs in every step.
        precision: `float32`, or `bfloat16`, in which nets then run under autocast; weights, optimizer and losses stay
            in float32. Evaluation is always in float32.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=16, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=3e-3, gt=0)
    schedule: Schedule = "cosine"
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=5.0, gt=0)
    augment: Augment = "none"
    mix: MixConfig = MixConfig()
    precision: Precision = "float32"


class TrainingConfig(FitConfig):
    """How a net with one set of weights is trained, and which weights the training leaves.

    Attributes:
        accumulate: batches whose mean gradient a step takes; BatchNorm still sees one batch at a time.
        ema: share that the average of the weights keeps at each step, such as 0.999: the training then leaves the
            average (Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992). null: no average.
        keep: `last`, the weights after the last epoch; or `best`, those of the epoch, the start included, that is best
            on the validation split. Validation values of what was kept so are optimistic.
        patience: with `keep: best`, epochs without a better value after which the training ends. null: it never does.

    Examples:
        >>> nas_kd.TrainingConfig(epochs=5, lr=2e-3, ema=0.99).optimizer
        'adamw'
    """

    accumulate: int = Field(default=1, ge=1)
    ema: float | None = Field(default=None, gt=0, lt=1)
    keep: Literal["last", "best"] = "last"
    patience: int | None = Field(default=None, ge=1)

    def num_steps(self, batches: int) -> int:
        """Steps of the optimizer in the whole training.

        Args:
            batches: of an epoch; the last step of an epoch takes those that are left.
        """
        return ceil(batches / self.accumulate) * self.epochs

    @model_validator(mode="after")
    def _patience_needs_the_best(self) -> TrainingConfig:
        if self.patience is not None and self.keep != "best":
            raise ValueError("patience needs the weights of the best epoch: add `keep: best`, or leave patience out")
        return self


class GateConfig(Section):
    """The gates of a search.

    Attributes:
        estimator: `straight_through` runs one candidate an edge; see `nas_kd.search_spaces.gates` for the others.
        temperature_start: gate temperature at the start of the search.
        temperature_end: gate temperature at its end.
        lr: learning rate of the gates (Adam, β₁ = 0.5 as in DARTS). null sets it so that a logit can move by about
            `LOGIT_RANGE` over the whole search, however long that is: gates then settle when the budget is reached and
            not before.
        warmup: share of the epochs in which only weights train.
        split_share: share of the training clips on which gates train; weights train on the rest.
        knots: budgets at which the gates of a shared search have logits of their own; in between they are interpolated.

    Examples:
        >>> nas_kd.GateConfig(estimator="two_path", split_share=0.25).estimator
        'two_path'
    """

    estimator: str = "straight_through"
    temperature_start: float = Field(default=2.0, gt=0)
    temperature_end: float = Field(default=0.5, gt=0)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.25, ge=0, lt=1)
    split_share: float = Field(default=0.5, gt=0, lt=1)
    knots: int = Field(default=5, ge=2)

    def model_post_init(self, _: object) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"unknown gate estimator {self.estimator!r}; choose from {', '.join(ESTIMATORS)}")

    @property
    def schedule(self) -> TemperatureSchedule:
        """Gate temperature over the search."""
        return TemperatureSchedule(self.temperature_start, self.temperature_end)


class LocalConfig(Section):
    """The local start of a search, for students of `delta_blocks`.

    Attributes:
        steps: of training all candidates on their own layers; 0 starts with uniform gates, without this phase.
        probes: batches of the gates' split on which the candidates are judged.
        prior: logits for a candidate that misses the whole change; 0 keeps gates uniform.
    """

    steps: int = Field(default=60, ge=0)
    probes: int = Field(default=16, ge=1)
    prior: float = Field(default=100.0, ge=0)
