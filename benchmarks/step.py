"""Time one step of gate search against one plain step: `python benchmarks/step.py [--repeats N]`.

Three edges in a chain, 8 candidates each, 16 channels, batches of 32 maps of 32×32 (4 clips of 8 frames), one thread;
SGD for weights, Adam for gates. Two sets of candidates: MBConv of two kernels and four expansions, and eight equal
ones. In round r the edges draw candidates (r, r + 3, r + 6) mod 8, so that eight rounds run every candidate once on
every edge, and the plain net of the round is the student of exactly these: the FLOPs really executed are asserted.

A search step is a weights step (gates frozen) and a gates step (weights frozen, as in `nas_kd.training`); its time is
given for the mean of the two and its memory, the unique storages saved for backward but for parameters, for the larger
of the two, each as a ratio to the plain step. Prints a table and, as the last line, one JSON object with the ratios for
the MBConv candidates.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.search_spaces import ESTIMATORS, OPS, Edge, ModuleSpace, Supernet

CHANNELS, BATCH, FRAMES, SIDE = 16, 4, 8, 32
NUM_EDGES, NUM_CANDIDATES = 3, 8
OFFSETS = (0, 3, 6)  # of the edges' candidates within a round
SETS = {
    "mbconv": [f"separable_k{k}_e{e}" for k in (3, 5) for e in (1, 2, 4, 6)],
    "equal": ["separable_k3_e4"] * NUM_CANDIDATES,
}
MIXTURES = ("softmax", "gumbel")  # run all candidates in every round, so one round a repeat is enough
SLOWER = 0.9  # a time may undercut that of a part of it by the noise of a shared machine, not by more


class Chain(nn.Module):
    """Edges in a row and a classifier."""

    def __init__(self, ops: Sequence[str]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            Edge({f"{i}_{op}": OPS[op](CHANNELS, CHANNELS, 1) for i, op in enumerate(ops)}) for _ in range(NUM_EDGES)
        )
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        for edge in self.edges:
            x = F.relu(edge(x))
        return self.head(x.mean(dim=(2, 3, 4)))  # type: ignore[no-any-return]


@dataclass
class Subject:
    """A net with what it takes to make one training step of it."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    trained: list[nn.Parameter]
    frozen: list[nn.Parameter]

    def step(self, x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(self.module(x), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def prepare(self) -> None:
        for p in self.frozen:
            p.requires_grad_(False)
        for p in self.trained:
            p.requires_grad_(True)


def plain(module: nn.Module) -> Subject:
    weights = list(module.parameters())
    return Subject(module.train(), torch.optim.SGD(weights, lr=1e-3, momentum=0.9), weights, [])


def searching(supernet: Supernet) -> dict[str, Subject]:
    weights, gates = supernet.weight_parameters(), supernet.gate_parameters()
    supernet.train()
    return {
        "weights": Subject(supernet, torch.optim.SGD(weights, lr=1e-3, momentum=0.9), weights, gates),
        "gates": Subject(supernet, torch.optim.Adam(gates, lr=1e-3, betas=(0.5, 0.999)), gates, weights),
    }


def decide(supernet: Supernet, turn: int) -> None:
    """Gates so sure that estimators of few paths draw the round's candidates; mixtures are left uniform."""
    with torch.no_grad():
        for offset, gate in zip(OFFSETS, supernet.gates.values(), strict=True):
            gate.gate_logits.zero_()
            if supernet.control.estimator not in (ESTIMATORS["softmax"], ESTIMATORS["gumbel"]):
                gate.gate_logits[(turn + offset) % NUM_CANDIDATES] = 400.0
                gate.gate_logits[(turn + offset + 1) % NUM_CANDIDATES] = 200.0  # the second path


def executed_flops(module: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(x)
    return int(counter.get_total_flops())


def saved_bytes(subject: Subject, x: Tensor, y: Tensor) -> int:
    parameters = {p.untyped_storage().data_ptr() for p in subject.module.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(subject.module(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(storages.values())


def timed(run: Callable[[], None]) -> float:
    """Processor seconds: on one thread the time of a free machine, also while others use it."""
    start = time.process_time()
    run()
    return time.process_time() - start


def subjects(space: ModuleSpace) -> tuple[list[Subject], dict[str, dict[str, Subject]]]:
    """The plain net of each round, and the two steps of each estimator."""
    students = []
    for turn in range(NUM_CANDIDATES):
        picks = ((turn + offset) % NUM_CANDIDATES for offset in OFFSETS)
        choices = {name: space.variables[name][pick] for name, pick in zip(space.variables, picks, strict=True)}
        students.append(plain(space.student(space.arch(choices))))
    return students, {name: searching(Supernet(space, estimator=name)) for name in ESTIMATORS}


def check_flops(students: list[Subject], searches: dict[str, dict[str, Subject]], x: Tensor) -> None:
    """One path executes what the student executes, two paths two of them, mixtures all."""
    flops = [executed_flops(s.module, x) for s in students]
    head = 2 * BATCH * CHANNELS * 10
    everything = sum(f - head for f in flops) + head
    for name, steps in searches.items():
        for kind, subject in steps.items():
            for turn in range(1 if name in MIXTURES else NUM_CANDIDATES):
                subject.prepare()
                decide(supernet_of(subject), turn)
                expected = flops[turn]
                if name in MIXTURES:
                    expected = everything
                elif name == "two_path" and kind == "gates":
                    expected += flops[(turn + 1) % NUM_CANDIDATES] - head
                executed = executed_flops(subject.module, x)
                assert executed == expected, f"{name}, {kind} step, round {turn}: {executed:,} FLOPs, not {expected:,}"


def supernet_of(subject: Subject) -> Supernet:
    assert isinstance(subject.module, Supernet)
    return subject.module


def measure(ops: Sequence[str], repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Estimator -> step -> ratios of time and bytes to the plain step."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, CHANNELS, FRAMES, SIDE, SIDE).contiguous(memory_format=torch.channels_last_3d)
    y = torch.randint(10, (BATCH,))
    space = ModuleSpace(lambda: Chain(ops), x[:1])
    students, searches = subjects(space)
    check_flops(students, searches, x)
    seconds: dict[tuple[str, str, int], list[float]] = {}
    memory: dict[tuple[str, str, int], int] = {}
    gc.disable()
    for repeat in range(repeats + 1):  # the first one warms up
        for turn, student in enumerate(students):
            for name, kind, subject in round_of(student, searches, turn, repeat):
                subject.prepare()
                if name != "plain":
                    decide(supernet_of(subject), turn)
                if repeat == 0:
                    memory[name, kind, turn] = saved_bytes(subject, x, y)
                else:
                    key = (name, kind, 0 if name in MIXTURES else turn)  # a mixture is the same in every round
                    seconds.setdefault(key, []).append(timed(partial(subject.step, x, y)))
        gc.collect()
    gc.enable()
    mean_s = mean_over_rounds({key: median(values) for key, values in seconds.items()})
    mean_bytes = mean_over_rounds(memory)
    base = ("plain", "weights")
    return {
        name: {
            kind: {
                "time": round(mean_s[name, kind] / mean_s[base], 3),
                "bytes": round(mean_bytes[name, kind] / mean_bytes[base], 3),
            }
            for kind in steps
        }
        for name, steps in searches.items()
    }


def mean_over_rounds(values: Mapping[tuple[str, str, int], float]) -> dict[tuple[str, str], float]:
    rounds: dict[tuple[str, str], list[float]] = {}
    for (name, kind, _), value in values.items():
        rounds.setdefault((name, kind), []).append(value)
    return {key: fmean(found) for key, found in rounds.items()}


def round_of(
    student: Subject, searches: dict[str, dict[str, Subject]], turn: int, repeat: int
) -> Iterator[tuple[str, str, Subject]]:
    """What is measured side by side in one round."""
    yield "plain", "weights", student
    for name, steps in searches.items():
        if name not in MIXTURES or turn == repeat % NUM_CANDIDATES:
            for kind, subject in steps.items():
                yield name, kind, subject


def check_ratios(result: dict[str, dict[str, dict[str, float]]]) -> None:
    """A stronger variant costs at least the part that it contains."""
    for kind in ("weights", "gates"):
        one, two, soft, noisy = (result[name][kind] for name in ("straight_through", "two_path", "softmax", "gumbel"))
        chain = [one, two, soft] if kind == "gates" else [{"time": 1.0, "bytes": 1.0}, one, soft]
        for part, whole in [*pairwise(chain), (soft, noisy)]:
            assert whole["time"] >= SLOWER * part["time"], f"{kind} step: {whole} is faster than its part {part}"
            assert whole["bytes"] >= part["bytes"] - 0.01, f"{kind} step: {whole} saves less than its part {part}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread; ratios to the plain step of the same FLOPs")
    print(f"{'candidates':<12}{'estimator':<18}{'weights step':>20}{'gates step':>20}{'search step':>20}")
    print(f"{'':<30}" + f"{'time':>12}{'bytes':>8}" * 3)
    last: dict[str, dict[str, float]] = {}
    for title, ops in reversed(SETS.items()):
        result = measure(ops, repeats)
        for name, steps in result.items():
            both = [steps["weights"], steps["gates"]]
            last[name] = {
                "time": round(sum(step["time"] for step in both) / 2, 3),
                "bytes": max(step["bytes"] for step in both),
            }
            cells = "".join(f"{step['time']:>12.2f}{step['bytes']:>8.2f}" for step in [*both, last[name]])
            print(f"{title:<12}{name:<18}{cells}", flush=True)
        check_ratios(result)
    print(json.dumps(last))


if __name__ == "__main__":
    main()
