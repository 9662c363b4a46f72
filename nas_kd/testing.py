"""Contract tests for classes of your own: call them in your tests, with pytest or without.

Each function raises `AssertionError` with a sentence that says which part of the contract is broken. They hold for the
tasks, terms, spaces, operators, teachers and sources of the package too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, get_args

import torch
from torch import Tensor, nn

from nas_kd.data import DataInfo, SourceConfig, check_sample
from nas_kd.data.mix import PARTNER, SHARE
from nas_kd.objectives import DistillationLoss, DistillationTerm, ObjectiveConfig, TermConfig
from nas_kd.search_spaces import ClipCellSettings, ClipCellSpace, SearchSpace, Supernet, count_flops
from nas_kd.search_spaces.arch import ArchSpec, Choice
from nas_kd.search_spaces.clip_cell.ops import EdgeShape, check_own_op
from nas_kd.search_spaces.operators import error_sentence
from nas_kd.taps import ModelOutput, Taps
from nas_kd.tasks import Batch, Task
from nas_kd.tasks.task import Outputs


def check_task(task_class: type[Task], info: DataInfo, batch: Batch, options: Mapping[str, Any] | None = None) -> None:
    """Hold a task against the contract of `nas_kd.tasks.Task`.

    Args:
        task_class: the task.
        info: what is known of data that fit it.
        batch: of such data, stacked, of at least 2 items that all have what the task needs.
        options: of the task, as under `task_options`.

    Raises:
        AssertionError: what is broken.
    """
    is_task = isinstance(task_class, type) and issubclass(task_class, Task)
    assert is_task, f"give check_task the class, a subclass of nas_kd.tasks.Task, but it got {_described(task_class)}"
    name = task_class.__name__
    missing = sorted(getattr(task_class, "__abstractmethods__", ()))
    missing += [] if hasattr(task_class, "metric") else ["metric"]
    assert not missing, f"{name} must define {', '.join(missing)}"
    task = _run(name, task_class, info, task_class.options.model_validate(dict(options or {})))
    assert hasattr(task, "info"), f"{name}.__init__ must call super().__init__(info, config)"
    assert task.outputs in get_args(Outputs), f"{name}.outputs must be one of {get_args(Outputs)}, not {task.outputs!r}"
    for key in task.keys:
        assert key in batch, f"{name}.keys: the batch must hold {key!r}, but it holds {', '.join(batch)}"
    count = len(task.class_names) + task.extra_outputs
    assert task.num_outputs == count, (
        f"{name}.num_outputs must be the number of class_names and extra_outputs, {count}, but is {task.num_outputs}"
    )
    outputs = _outputs_for(task, info, batch)
    # What a campaign shows it, and no more.
    shown = {info.input_key, *task.keys, *(f"map.{map_name}" for map_name in info.map_names)}
    batch = _OnlyKeys({key: value for key, value in batch.items() if key in shown}, name)
    kept = {key: value.clone() for key, value in batch.items()}

    loss = _run(f"{name}.loss", task.loss, outputs, batch)
    assert isinstance(loss, Tensor), f"{name}.loss must give a tensor, but gives {_described(loss)}"
    assert loss.ndim == 0, f"{name}.loss must give a scalar, but gives a tensor of shape {tuple(loss.shape)}"
    assert math.isfinite(float(loss.detach())), f"{name}.loss must be finite, but is {float(loss.detach())}"
    if task.mixes:
        _check_mixed(task, outputs, batch, float(loss.detach()))
    (gradient,) = torch.autograd.grad(loss, outputs, allow_unused=True)
    assert gradient is not None, f"{name}.loss must depend on the outputs, but has no gradient to them"
    assert bool(gradient.isfinite().all()), f"{name}.loss must have a finite gradient, but it is not"

    outputs = outputs.detach()
    _run(f"{name}.update", task.update, outputs, batch, None)
    whole = _run(f"{name}.compute", task.compute)
    known = task_class.known_metrics()
    for metric in whole if known else ():
        named = any(fnmatchcase(metric.partition("@")[0], each) for each in known)
        assert named, f"{name}.metrics must name all that compute gives, but {metric!r} is not among {', '.join(known)}"
    assert isinstance(whole, dict), f"{name}.compute must give a dict of metrics, but gives {_described(whole)}"
    assert task.metric in whole, f"{name}.compute must give the primary metric {task.metric!r}, but gives {list(whole)}"
    for metric, value in whole.items():
        assert type(value) is float, f"{name}.compute must give floats, but {metric!r} is a {type(value).__name__}"
        assert math.isfinite(value), f"{name}.compute must give finite numbers, but {metric!r} is {value}"
    for rows in (slice(None, 1), slice(1, None)):
        task.update(outputs[rows], {key: value[rows] for key, value in batch.items()})
    parts = task.compute()
    assert parts.keys() == whole.keys(), (
        f"{name}.compute must give the same metrics for the same items, but gives {list(whole)} for one batch and "
        f"{list(parts)} for the same items in two"
    )
    for metric, value in whole.items():
        assert math.isclose(parts[metric], value, rel_tol=1e-4, abs_tol=1e-5), (
            f"{name}: metrics must not depend on how items are batched and must be cleared by compute, but {metric!r} "
            f"is {value} for one batch and {parts[metric]} for the same items in two"
        )
    try:
        empty: object = task.compute()
    except ValueError:
        empty = None
    assert empty is None, f"{name}.compute must raise ValueError where nothing was added, but gives {empty}"
    if task.framewise:
        _check_offsets(task, outputs, batch)
    for key, tensor in batch.items():
        assert torch.equal(tensor, kept[key]), f"{name} must not write to its batch, but changed {key!r}"


def _check_mixed(task: Task, outputs: Tensor, batch: Batch, plain: float) -> None:
    """A loss of mixed items is that of the items where all of each is its own, and else depends on the shares."""
    name, number = type(task).__name__, len(outputs)
    partner = {PARTNER: torch.arange(number).roll(1)}
    own, half = (
        float(
            _run(f"{name}.loss", task.loss, outputs, {**batch, **partner, SHARE: torch.full((number,), share)}).detach()
        )
        for share in (1.0, 0.5)
    )
    assert math.isclose(own, plain, rel_tol=1e-4, abs_tol=1e-6), (
        f"{name}.mixes: where mix_share is 1, the loss must be that of the plain batch, {plain}, but is {own}"
    )
    assert not math.isclose(half, plain, rel_tol=1e-6) or _are_alike(task, batch), (
        f"{name}.mixes: the loss must weigh the labels of mix_partner by mix_share, but does not depend on it"
    )


def _are_alike(task: Task, batch: Batch) -> bool:
    """Whether all items have the same labels, so that mixing changes nothing."""
    return all(torch.equal(batch[key], batch[key].roll(1, 0)) for key in task.keys)


class _OnlyKeys(dict[str, Tensor]):
    """A batch of the keys that a task declares."""

    def __init__(self, batch: Batch, task: str) -> None:
        super().__init__(batch)
        self.task = task

    def __missing__(self, key: str) -> Tensor:
        raise AssertionError(
            f"{self.task} reads {key!r} of the batch, which a campaign gives only where it is in keys, but the batch "
            f"holds {', '.join(self)} alone"
        )


def _run(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of a function of the user's; its failure is raised as one sentence."""
    try:
        return function(*args)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} fails with {error_sentence(error)}") from error


def _described(value: object) -> str:
    """What a value is, for a sentence."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _outputs_for(task: Task, info: DataInfo, batch: Batch) -> Tensor:
    """Random outputs of a model, with gradient."""
    size = len(next(iter(batch.values())))
    shape: tuple[int, ...] = (size, task.num_outputs)
    if task.framewise:
        shape = (size, info.frames, task.num_outputs, 8, 8)
    elif task.dense:
        shape = (size, task.num_outputs, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _check_offsets(task: Task, outputs: Tensor, batch: Batch) -> None:
    """A frame-wise task gives its metric by the distance to the key frame, and the mean over distances."""
    name, offsets = type(task).__name__, [frame % 2 for frame in range(outputs.shape[1])]
    task.update(outputs, batch, offsets)
    values = task.compute()
    by_offset = [value for metric, value in values.items() if metric.startswith(f"{task.metric}@")]
    assert by_offset, f"{name}.compute must give {task.metric}@k where offsets were given, but gives {list(values)}"
    mean = sum(by_offset) / len(by_offset)
    assert math.isclose(values[task.metric], mean, rel_tol=1e-6, abs_tol=1e-9), (
        f"{name}: {task.metric} must be the mean of {task.metric}@k where offsets were given, {mean}, but is "
        f"{values[task.metric]}"
    )


def check_objective_term(
    config: TermConfig,
    task: Task,
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    batch: Batch,
    teacher_inputs: Tensor | None = None,
) -> None:
    """Hold a term against the contract of `nas_kd.objectives.TermConfig` and `DistillationTerm`.

    Args:
        config: of the term, of a class that can be imported; its weight must be above 0.
        task: that it is used with.
        student: a net that it fits.
        teacher: a net that it fits, frozen by this function.
        inputs: of the student, of at least 2 items.
        batch: with the keys of the task.
        teacher_inputs: of the teacher; `inputs` where it is not given.

    Raises:
        AssertionError: what is broken.
    """
    assert isinstance(config, TermConfig), (
        f"give check_objective_term the config, an instance of a TermConfig, but it got {_described(config)}"
    )
    kind = type(config)
    name = f"{kind.__module__}:{kind.__qualname__}"
    assert "<locals>" not in name, (
        f"{name}: define the class at the top of a module, so that a campaign file can name it"
    )
    content = config.model_dump(mode="json")
    assert config.weight > 0, f"{name}: give the term a weight above 0, so that it is built"
    assert kind.model_validate(content) == config, f"{name} must read back what it writes, but does not from {content}"
    objective = ObjectiveConfig.model_validate({"task": {"weight": 0}, "feature": {"weight": 0}, name: content})
    shown = inputs if teacher_inputs is None else teacher_inputs
    teacher.requires_grad_(False).eval()

    def built() -> DistillationLoss:
        torch.manual_seed(0)
        return DistillationLoss(objective, task, student, teacher, inputs[:1], shown[:1])

    loss: DistillationLoss = _run(name, built)
    with Taps(student, loss.student_taps) as of_student, Taps(teacher, loss.teacher_taps) as of_teacher:
        student_output = of_student(inputs)
        teacher_output: ModelOutput | None = None
        if loss.uses_teacher:
            with torch.no_grad():
                teacher_output = of_teacher(shown)
    values = _run(f"{name}: forward", loss, student_output, teacher_output, batch)
    (part,) = loss.parts.values()
    assert isinstance(part, DistillationTerm)
    assert values.keys() == part.weights.keys(), (
        f"{name}: forward must give a value for each name in weights, {list(part.weights)}, but gives {list(values)}"
    )
    for key, value in values.items():
        assert isinstance(value, Tensor), f"{name}: {key!r} must be a tensor, but is {_described(value)}"
        assert value.ndim == 0, f"{name}: {key!r} must be a scalar, but has the shape {tuple(value.shape)}"
        assert math.isfinite(float(value.detach())), f"{name}: {key!r} must be finite, but is {float(value.detach())}"
    again = loss(student_output, teacher_output, batch)
    for key, value in values.items():
        assert torch.equal(value, again[key]), f"{name}: {key!r} must be the same for the same inputs, but is not"
    student.zero_grad()
    loss.total(values).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert any(bool(g.any()) for g in gradients), f"{name}: the student must learn from the term, but has no gradient"
    assert all(p.grad is None for p in teacher.parameters()), f"{name}: the teacher must get no gradient, but has one"
    restored = built()
    restored.load_state_dict(loss.state_dict())
    for key, value in restored(student_output, teacher_output, batch).items():
        assert torch.equal(value, values[key]), (
            f"{name}: {key!r} must be the same after its state was loaded, but is not"
        )


def check_space(space: SearchSpace, knobs: Mapping[str, Choice] | None = None, *, num_archs: int = 8) -> None:
    """Hold a search space against the contract of `nas_kd.search_spaces.SearchSpace`.

    Args:
        space: the space, whose students read what `example_input` gives.
        knobs: values of its knobs; the last one of each by default.
        num_archs: how many random architectures to look at.

    Raises:
        AssertionError: what is broken.
    """
    assert isinstance(space, SearchSpace), f"give check_space a SearchSpace, but it got {_described(space)}"
    for name, choices in space.variables.items():
        layers = space.layers(name)
        assert layers is None or len(layers) == len(choices), (
            f"layers must give None or one number a choice, but for {name!r} it gives {layers} for {list(choices)}"
        )
    chosen, draws = space.knobs_with(knobs), torch.Generator().manual_seed(0)
    supernet: Supernet = _run(f"space {space.name!r}: its supernet", Supernet, space, chosen).eval()
    example = space.example_input(chosen)
    inputs = torch.randn(example.shape, generator=draws)
    for _ in range(num_archs):
        free: dict[str, Choice] = {
            variable: values[int(torch.randint(len(values), (), generator=draws))]
            for variable, values in space.variables.items()
        }
        arch = space.arch({**free, **chosen})
        _check_effects(space, {**free, **chosen})
        assert ArchSpec.from_dict(arch.as_dict()) == arch, f"an architecture must read back as it was written: {arch}"
        student = supernet.derive(arch=arch).eval()
        counted, costs = count_flops(student, example).total, space.cost(arch)
        assert costs == counted, f"space.cost must be what fvcore counts, {counted}, but is {costs} for {arch.choices}"
        with torch.no_grad(), supernet.pinned(arch):
            gap = (supernet(inputs) - student(inputs)).abs().max()
        assert float(gap) < 1e-4, (
            f"a derived student must compute what the supernet does with these choices, but they differ by "
            f"{float(gap):.2g} for {arch.choices}"
        )


def _check_effects(space: SearchSpace, choices: Mapping[str, Choice]) -> None:
    """`effects` is optional; where a space has it, it must agree with `active`."""
    effects = {effect.variable: effect for effect in space.effects({name: choices[name] for name in space.knobs})}
    if not effects:
        return
    active = space.active(choices)
    for name in space.variables:
        has_effect = True
        if name in effects:
            index = [space.variables[n].index(choices[n]) for n in effects[name].deciders]
            has_effect = bool(effects[name].holds[tuple(index)])
        assert has_effect == (name in active), (
            f"effects and active must agree, but of {name!r} they do not for {dict(choices)}"
        )


def check_operator(build: Callable[[int, int, int], nn.Module], widths: tuple[int, int] = (8, 16)) -> None:
    """Hold an operator against the contract of `nas_kd.search_spaces.clip_cell.ops`.

    Args:
        build: (input channels, output channels, spatial stride) -> module.
        widths: a smaller and a larger number of channels that it must take.

    Raises:
        AssertionError: what is broken.
    """
    name = getattr(build, "__name__", type(build).__name__)
    low, high = widths
    edges = [EdgeShape((low, low), (high, high), 1, 4, 9), EdgeShape((low, high), (high, high), 2, 4, 9)]
    try:
        check_own_op(name, build, edges)
    except ValueError as error:
        raise AssertionError(str(error)) from error
    op = build(low, high, 2)
    clips = torch.randn(2, low, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    op.train()(clips).square().sum().backward()
    idle = [parameter for parameter, tensor in op.named_parameters() if tensor.grad is None]
    assert not idle, f"{name}: all parameters must take part, but {', '.join(idle)} has no gradient"
    with torch.no_grad():
        gap = (torch.cat([op.eval()(clip[None]) for clip in clips]) - op(clips)).abs().max()
    assert float(gap) < 1e-4, f"{name} must map each clip alone in evaluation, but clips differ by {gap:.2g} in a batch"
    settings = ClipCellSettings(
        num_classes=2, stem_width=low, widths=((low, high),), depths=((1,),), strides=(2,), ops=("own:operator",),
        resolution=(16,), frames=(4,),
    )  # fmt: skip
    check_space(ClipCellSpace(settings, {"own:operator": build}), num_archs=2)


def check_teacher(model: nn.Module, inputs: Tensor, num_outputs: int) -> None:
    """Hold a teacher against what campaigns ask of it.

    Args:
        model: the teacher.
        inputs: of at least 2 items: clips (N, 3, T, H, W), frames (N, 3, H, W) or frame features (N, T, D).
        num_outputs: channels that the task needs.

    Raises:
        AssertionError: what is broken.
    """
    assert isinstance(model, nn.Module), f"a teacher must be a torch.nn.Module, but is {_described(model)}"
    name = type(model).__name__
    model.eval()
    with torch.no_grad():
        outputs = _run(f"{name}, for inputs of shape {tuple(inputs.shape)},", model, inputs)
        assert isinstance(outputs, Tensor), f"{name} must return one tensor, but returns a {type(outputs).__name__}"
        assert outputs.ndim in (2, 4), (
            f"{name} must give logits (N, C) or maps (N, C, h, w), not {tuple(outputs.shape)}"
        )
        wanted = (len(inputs), num_outputs)
        assert outputs.shape[:2] == wanted, f"{name} must give {wanted} outputs, but gives {tuple(outputs.shape[:2])}"
        assert bool(outputs.isfinite().all()), f"{name} must give finite outputs, but some are not"
        gap = (model(inputs) - outputs).abs().max()
        assert float(gap) == 0, f"{name} must give the same for the same inputs in evaluation, but differs by {gap:.2g}"
        gap = (torch.cat([model(item[None]) for item in inputs]) - outputs).abs().max()
        assert float(gap) < 1e-3, (
            f"{name} must answer for each item alone in evaluation, but answers differ by {float(gap):.2g} in a batch"
        )
    shared = {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    stored = [tensor for tensor in model.state_dict().values() if tensor.numel()]
    assert len(shared) == len(stored), (
        f"{name}: tensors of its state must not share memory, or safetensors refuses them"
    )


def check_source(config: SourceConfig, *, num_items: int = 4) -> None:
    """Hold a data source against the contract of `nas_kd.data.sample`.

    Args:
        config: the `data` section, such as `OwnConfig(function="my_data:load")`.
        num_items: how many items of each split to look at.

    Raises:
        AssertionError: what is broken.
        DataError: the source itself or a sample breaks the contract of samples.
    """
    assert isinstance(config, SourceConfig), (
        f'give check_source the config, such as OwnConfig(function="my_data:load"), but it got {_described(config)}'
    )
    splits = config.load(seed=0)
    for name in ("weights", "gates", "val", "test"):
        dataset = getattr(splits, name)
        assert len(dataset) > 0, f"the split {name!r} must hold at least one item, but it is empty"
        for index in range(min(num_items, len(dataset))):
            where = f"{name}[{index}]"
            sample, again = (_run(where, dataset.__getitem__, index) for _ in range(2))
            check_sample(sample, splits.info, where)
            assert sample.keys() == again.keys(), f"{where} must hold the same keys each time, but does not"
            for key, value in sample.items():
                assert isinstance(value, Tensor), f"{where}[{key!r}] must be a tensor, but is {_described(value)}"
                assert torch.equal(value, again[key]), f"{where}[{key!r}] must be the same each time, but is not"
