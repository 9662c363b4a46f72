"""What the tests of several spaces do: draw and decide architectures, scramble statistics, count, compare, export."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_kd.search_spaces import ArchSpec, FlopCount, SearchSpace, Supernet, count_flops
from nas_kd.search_spaces.arch import Choice


def drawn(space: SearchSpace, rng: np.random.Generator) -> dict[str, Choice]:
    """A uniform choice for every variable, those without effect too."""
    return {name: values[int(rng.integers(len(values)))] for name, values in space.variables.items()}


def drawn_arch(supernet: Supernet, rng: np.random.Generator) -> ArchSpec:
    """Uniform choices at the supernet's knobs."""
    return supernet.space.arch({**drawn(supernet.space, rng), **supernet.knobs})


def sampled(supernet: Supernet) -> dict[str, Choice]:
    """What ran in the last forward pass: gate -> choice, for gates that drew a single candidate."""
    return {
        name: supernet.space.variables[name][draw.single]
        for name, draw in supernet.control.draws.items()
        if draw.single is not None
    }


def decide(supernet: Supernet, arch: ArchSpec, rng: np.random.Generator, margin: float = 1000.0) -> None:
    """Set the gates to `arch`; gates without effect there get any one choice."""
    with torch.no_grad():
        for name, gate in supernet.gates.items():
            choice = arch.choices.get(name, gate.choices[int(rng.integers(len(gate.choices)))])
            gate.gate_logits.zero_()
            gate.gate_logits[gate.choices.index(choice)] = margin


def scramble_batch_norm(module: nn.Module, generator: torch.Generator) -> None:
    """Statistics and parameters of every BatchNorm that are not those of a fresh net."""
    for m in module.modules():
        if isinstance(m, _BatchNorm):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.normal_(m.weight, generator=generator)
            nn.init.normal_(m.bias, generator=generator)


def check_costs(supernet: Supernet, arch: ArchSpec, rng: np.random.Generator) -> FlopCount:
    """Gates that are decided on `arch`, the table, the space and fvcore name one integer; what fvcore counted. Likewise
    the table of parameters names the student's."""
    space = supernet.space
    decide(supernet, arch, rng)
    student = space.student(arch)
    counted = count_flops(student, space.example_input(supernet.knobs))
    assert space.figure("params", arch) == sum(p.numel() for p in student.parameters())
    assert supernet.expected_cost().item() == counted.total
    assert supernet.cost_table.cost(arch.choices) == counted.total
    assert space.cost(arch) == counted.total
    assert supernet.arch() == arch
    choices = {**drawn(space, rng), **supernet.knobs}
    without_effect = set()
    for effect in space.effects(supernet.knobs):
        index = [space.variables[name].index(choices[name]) for name in effect.deciders]
        if not effect.holds[tuple(index)]:
            without_effect.add(effect.variable)
    assert space.active(choices) == set(space.variables) - without_effect
    return counted


def check_one_hot_mixtures(supernet: Supernet, x: Tensor, rng: np.random.Generator, turns: int) -> None:
    """A soft supernet whose gates are sure computes what it computes with its gates pinned."""
    for _ in range(turns):
        arch = drawn_arch(supernet, rng)
        decide(supernet, arch, rng)
        soft = supernet.train()(x)
        with supernet.pinned(arch):
            torch.testing.assert_close(soft, supernet(x), rtol=1e-5, atol=1e-5)


def check_size(space: SearchSpace) -> int:
    """The number of architectures, which `size` must give, by making each of them."""
    options = {**space.knobs, **space.variables}
    ids = {space.arch(dict(zip(options, c, strict=True))).arch_id for c in product(*options.values())}
    assert space.size() == len(ids)
    return len(ids)


def exported(student: nn.Module, example: Tensor, folder: Path) -> nn.Module:
    """The graph of `student`, of any batch size, written and read again."""
    program = torch.export.export(student, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, folder / "student.pt2")
    return torch.export.load(folder / "student.pt2").module()


def onnx_of(student: nn.Module, example: Tensor, folder: Path) -> Callable[[Tensor], Tensor]:
    """`student`, of any batch size, as ONNX Runtime runs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        program = torch.onnx.export(
            student, (example,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
    assert program is not None
    program.save(folder / "student.onnx")
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0]))
