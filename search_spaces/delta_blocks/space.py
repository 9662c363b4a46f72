"""Space `delta_blocks`: students of a teacher's own layers, which predict how their outputs change after a key frame.

Every eligible layer of the teacher (`plan`) becomes a delta layer (`net`) whose gate chooses among the candidates of
`ops`: cheap linear students initialised from the teacher's kernel, non-linear ones, a full copy,
and `zero`, which keeps the key frame's output. The key-frame interval is a knob.

FLOPs are those of one key-frame interval of K frames; what is reported is their amortised share, a frame.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.cells import Edge
from nas_kd.search_spaces.chain import Effect
from nas_kd.search_spaces.checkpoints import checkpoints_run_directly
from nas_kd.search_spaces.copies import copied
from nas_kd.search_spaces.cost import CostTable
from nas_kd.search_spaces.delta_blocks.cost import CandidateCosts, is_read, read_effects
from nas_kd.search_spaces.delta_blocks.figures import frame_tables, params_table, state_table
from nas_kd.search_spaces.delta_blocks.fold import fold_batchnorm, replace_module
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, DeltaNet, PassContext
from nas_kd.search_spaces.delta_blocks.ops import DeltaOp, LinearDelta, PairDelta, build_candidate, own_candidate
from nas_kd.search_spaces.delta_blocks.plan import PlannedLayer, plan_layers
from nas_kd.search_spaces.delta_blocks.settings import DeltaBlocksSettings
from nas_kd.search_spaces.gates import GateFactory
from nas_kd.search_spaces.operators import NO_OPERATORS, Operators, check_export, needed
from nas_kd.search_spaces.space import SearchSpace, derived_settings


class DeltaBlocksSpace(SearchSpace):
    """The space described at the top of this module.

    Args:
        settings: what is searched.
        teacher: frames (N, 3, H, W) -> one tensor; copied, with BatchNorm folded into its convolutions.
        frame_size: (H, W) of a frame.
        identity: identifies this teacher among others, as JSON values; part of every `ArchSpec`.
        operators: functions of the user's candidates among `settings.candidates`, by `module:function`.

    Attributes:
        plan: the teacher's delta layers, and why other layers are none.

    Raises:
        ValueError: no layer is eligible, a pattern matches nothing, or the teacher does not give one tensor for a
            frame, or gives another one when other frames are in the batch; a function is not given, or does not keep
            the contract of `own_candidate`.

    Examples:
        >>> convolutions = [nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8)]
        >>> teacher = nn.Sequential(*convolutions, nn.Conv2d(8, 2, 1))
        >>> settings = nas_kd.DeltaBlocksSettings(keyframe_interval=(3,))
        >>> space = nas_kd.DeltaBlocksSpace(settings, teacher, frame_size=(16, 16))
        >>> student = space.student(space.sample(np.random.default_rng(0)))
        >>> student(torch.zeros(1, 3, 6, 16, 16)).shape
        torch.Size([1, 6, 2, 16, 16])
    """

    name = "delta_blocks"

    @property
    def left_out(self) -> Mapping[str, str]:
        return self.plan.left_out

    def __init__(
        self,
        settings: DeltaBlocksSettings,
        teacher: nn.Module,
        frame_size: tuple[int, int],
        identity: Mapping[str, Any] | None = None,
        operators: Operators = NO_OPERATORS,
    ) -> None:
        self._s, self._own = settings, needed(settings.candidates, operators)
        self.frame_size = frame_size
        # From 0 to 1, which is in the range of all common normalisations: some nets refuse other values.
        frame = torch.rand(1, 3, *frame_size, generator=torch.Generator().manual_seed(0))
        own = copied(teacher, "the teacher").cpu().eval()
        _check_teacher(own, frame)
        folded = fold_batchnorm(own, frame)
        for module in folded.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]  # z_0 must outlive the activation after it
        self._teacher: nn.Module = _channels_last(folded)
        self._teacher.requires_grad_(False)
        self.plan = plan_layers(
            self._teacher,
            frame,
            include=settings.include,
            exclude=settings.exclude,
            blocks=settings.blocks,
            skip_first=settings.skip_first,
            skip_last=settings.skip_last,
            min_share=settings.min_share,
        )
        self.settings = derived_settings(settings.model_dump(mode="json"), frame_size, identity)
        self.knobs = {"keyframe_interval": settings.keyframe_interval}
        self._costs = CandidateCosts(self.plan, settings.candidates, settings.keyframe_interval[-1], self._try)
        self.variables: Mapping[str, tuple[Choice, ...]] = {
            layer.name: self._costs.choices(layer) for layer in self.plan.layers
        }
        self._tables: dict[int, CostTable] = {}
        self._figures: dict[str, tuple[CostTable, ...]] = {}

    @property
    def teacher(self) -> nn.Module:
        """A copy of the folded teacher, frozen and on the CPU. The space keeps its own, whatever becomes of it."""
        return copy.deepcopy(self._teacher)

    # What a space must offer

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        def edge(layer: PlannedLayer) -> Edge:
            names = [str(choice) for choice in self.variables[layer.name]]
            layer = replace(layer, shape=replace(layer.shape, bases={}))  # decomposed once for all of its candidates
            built = Edge({name: self.candidate(layer, name) for name in names}, make_gate)
            built.gate.name = layer.name
            return built

        return self._net(int(knobs["keyframe_interval"]), edge)

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        """The plain net; its weights are the teacher's, and those that candidates start with."""
        return self._net(
            int(choices["keyframe_interval"]),
            lambda layer: self.candidate(layer, str(choices[layer.name])) if layer.name in choices else None,
        )

    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        source, target = cast(DeltaNet, network).layers(), cast(DeltaNet, student).layers()
        own = student.state_dict().keys()
        weights = {name: weight for name, weight in network.state_dict().items() if name in own}
        student.load_state_dict(weights, strict=False)
        for name, layer in target.items():
            if layer.student is not None:
                candidates = cast(Edge, source[name].student).by_name
                layer.student.load_state_dict(candidates[str(choices[name])].state_dict())

    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        interval = int(knobs["keyframe_interval"])
        if interval not in self._tables:
            self._tables[interval] = self._costs.table(self.variables, interval)
        return self._tables[interval]

    def figures(self, knobs: Mapping[str, Choice]) -> dict[str, tuple[CostTable, ...]]:
        """`params`, `worst_frame_flops` (of a key frame and of a delta frame), and `state_bytes` of one stream.

        `state_bytes` is missing where so many layers share an input that its table would be too large.
        """
        if not self._figures:
            frame = torch.zeros(1, 3, *self.frame_size).contiguous(memory_format=torch.channels_last)
            self._figures = {
                "params": (params_table(self._costs, self.variables, self._teacher),),
                "worst_frame_flops": frame_tables(self._costs, self.variables),
            }
            state = state_table(self._costs, self.variables, self._teacher, frame)
            if state is not None:
                self._figures["state_bytes"] = (state,)
        return dict(self._figures)

    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        """One key-frame interval: (1, 3, K, H, W)."""
        return torch.zeros(1, 3, int(knobs["keyframe_interval"]), *self.frame_size)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        """All layers but those whose output nobody reads on delta frames."""
        return {layer.name for layer in self.plan.layers if is_read(layer, choices)}

    def effects(self, knobs: Mapping[str, Choice]) -> tuple[Effect, ...]:
        """`active` as tables."""
        return read_effects(self.plan.layers, self.variables)

    def check_operators(self) -> None:
        """Export each candidate of the user's as the first layer that has it needs it.

        Raises:
            ValueError: one cannot be exported.
        """
        for name in self._own:
            for layer in self.plan.layers:
                if name in self.variables[layer.name]:
                    body = cast(LinearDelta | PairDelta, self.candidate(layer, name)).body
                    check_export(name, body, torch.zeros(2, *layer.in_shape[1:]))
                    break

    # For campaigns and runtimes

    def candidate(self, layer: PlannedLayer, name: str) -> DeltaOp:
        """A candidate of a layer, with the weights that it starts with."""
        op = self._try(layer, name)
        assert op is not None, "variables hold what layers can have"
        return op.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _try(self, layer: PlannedLayer, name: str) -> DeltaOp | None:
        if name == "full" and layer.shape.weight is None:
            block = copy.deepcopy(self._teacher.get_submodule(layer.name))
            return PairDelta(block.requires_grad_(True))
        if name == "zero" and not layer.may_be_zero:
            return None
        if name in self._own:
            return own_candidate(name, self._own[name], layer.shape)
        return build_candidate(name, layer.shape)

    def _net(self, interval: int, student_of: Any) -> DeltaNet:
        net, context = copy.deepcopy(self._teacher), PassContext()
        for layer in self.plan.layers:
            module = net.get_submodule(layer.name)
            delta = DeltaLayer(
                module,
                student_of(layer),
                layer.name,
                context,
                layer.out_shape[1:],
                copy_input=layer.copy_input,
                copy_output=layer.copy_output,
            )
            replace_module(net, module, delta)
        return DeltaNet(net, interval)


def _channels_last(net: nn.Module) -> nn.Module:
    """The net with its kernels of two dimensions in the layout that is fastest on CPUs; `to` takes no others along."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == len("NCHW"):
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return net


def _check_teacher(teacher: nn.Module, frame: Tensor) -> None:
    """Raise `ValueError` where a module cannot be the teacher of students that run on such frames."""
    shape = f"of shape {tuple(frame.shape)}"
    for name, module in teacher.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"the teacher's output for a frame must not depend on other frames, but {name or 'it'} normalises with "
                "the statistics of its batch; give it running statistics (track_running_stats=True)"
            )
    other = 1 - frame.flip(-1) / 2
    try:
        with torch.no_grad(), checkpoints_run_directly() as checkpoints:
            alone, beside = teacher(frame.clone()), teacher(torch.cat([frame, other]))
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"the teacher could not run a frame {shape}, alone or in a batch of two: {reason}; set data.size (or "
            "frame_size) or change the teacher"
        ) from error
    if checkpoints:
        raise ValueError(
            "the teacher uses torch.utils.checkpoint, which runs layers a second time in the backward pass, and delta "
            "layers keep a state between passes; switch checkpointing off where teacher.model is built (it saves "
            "memory in training alone)"
        )
    if not isinstance(alone, Tensor):
        raise ValueError(
            f"the teacher must give one tensor for a frame {shape}, but gives a {type(alone).__name__}; wrap it in a "
            "module that picks it"
        )
    if alone.ndim == 0 or len(alone) != 1 or beside.shape != (2, *alone.shape[1:]):
        raise ValueError(
            f"the teacher must give one row for each frame, but for one {shape} it gives {tuple(alone.shape)} and for "
            f"two {tuple(beside.shape)}; wrap it in a module that keeps the batch as the first dimension"
        )
    if alone.is_floating_point() and (beside[:1] - alone).abs().max() > 1e-2 * alone.abs().max():
        raise ValueError(
            f"the teacher's output for a frame {shape} must not depend on other frames, but it changes with another "
            "one in the batch; replace what computes statistics over the batch"
        )
