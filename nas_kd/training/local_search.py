"""Local start of a search over delta layers: each candidate is trained on its own layer, its loss sets its logit.

In a supernet whose paths are drawn, a candidate is trained every now and then, on inputs that the other draws distort,
and a short search tells candidates apart by little more than noise. A delta layer has a target of its own: the change
of the teacher's output. So all candidates of all layers are trained at once on the teacher's own inputs, each by the
delta loss of its layer, as in blockwise distillation (Li et al., DNA, CVPR 2020; Molchanov et al., LANA, ECCV 2022).
The loss that is left on the gates' split, in units of the layer's change, is how much of the change a candidate misses:
the logits start at minus that, times `prior`. Sums of logits then rank architectures by the sum of their missed shares,
and the alternating search goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Batch, ClipLoader
from nas_kd.data.frame_sampling import random_pairs
from nas_kd.objectives.delta import LEAST_CHANGE
from nas_kd.search_spaces import DeltaNet, Edge, Supernet
from nas_kd.training.gate_search import cycle
from nas_kd.training.settings import FitConfig, LocalConfig
from nas_kd.training.steps import learning_rate, make_optimizer, set_learning_rate


def start_locally(
    read: Callable[[Batch], Tensor],
    supernet: Supernet,
    weights: ClipLoader,
    gates: ClipLoader,
    fit: FitConfig,
    config: LocalConfig,
    *,
    seed: int,
    progress: OnProgress = no_progress,
) -> dict[str, dict[str, float]]:
    """Train all candidates locally and set the gates' logits, in place.

    Args:
        read: batch -> normalised clips (N, 3, T, H, W).
        supernet: of space `delta_blocks`.
        weights: batches that candidates learn from.
        gates: batches that they are judged on.
        fit: optimizer and learning rate.
        config: of this phase.
        seed: of the pairs of frames.
        progress: called after every step.

    Returns:
        Layer -> candidate -> share of the layer's change that it misses.
    """
    net = cast(DeltaNet, supernet.network)
    interval = int(supernet.knobs["keyframe_interval"])
    torch.manual_seed(seed)
    edges = {name: cast(Edge, layer.student) for name, layer in net.layers().items()}
    trained = [p for edge in edges.values() for p in edge.candidates.parameters()]
    optimizer, schedule = make_optimizer(fit, trained), fit.model_copy(update={"warmup": 0.0})
    supernet.train()
    batches = cycle(weights)
    for step in range(config.steps):
        set_learning_rate(optimizer, learning_rate(schedule, step / config.steps))
        optimizer.zero_grad(set_to_none=True)
        with _on_teacher(net, edges, train=True):
            _pass(net, read(random_pairs(next(batches), interval)))
        for edge in edges.values():  # each layer is a problem of its own, and so is its gradient's size
            torch.nn.utils.clip_grad_norm_(edge.candidates.parameters(), fit.clip_norm)
        optimizer.step()
        progress((step + 1) / (config.steps + 1), f"candidates {step + 1}/{config.steps}")
    supernet.eval()
    batches = cycle(gates)
    with _on_teacher(net, edges, train=False) as missed:
        for _ in range(config.probes):
            _pass(net, read(random_pairs(next(batches), interval)))
    shares = {layer: {name: value / config.probes for name, value in of.items()} for layer, of in missed.items()}
    with torch.no_grad():
        for layer, edge in edges.items():
            values = torch.tensor([min(shares[layer][name], 1.0) for name in edge.by_name])
            edge.gate.gate_logits.copy_(-config.prior * values)
    return shares


@torch.no_grad()
def _pass(net: DeltaNet, pairs: Tensor) -> None:
    """The teacher's layers on key frames and later frames (N, 3, 2, H, W): rows take turns."""
    net(pairs, 1)


@contextmanager
def _on_teacher(net: DeltaNet, edges: dict[str, Edge], *, train: bool) -> Iterator[dict[str, dict[str, float]]]:
    """While it lasts, every layer of the teacher that runs lets its candidates learn, or adds up what they miss."""
    missed: dict[str, dict[str, float]] = {name: dict.fromkeys(edge.by_name, 0.0) for name, edge in edges.items()}

    def run(layer: str, x: Tensor, z: Tensor) -> None:
        key, frame, before, after = x[0::2], x[1::2], z[0::2], z[1::2]
        change = after - before
        scale = torch.maximum(change.square().mean(), LEAST_CHANGE * after.square().mean()).clamp_min(1e-12)
        for name, candidate in edges[layer].by_name.items():
            if train and not any(True for _ in candidate.parameters()):
                continue
            with torch.set_grad_enabled(train):
                error = (candidate(frame, key) - change).square().mean() / scale
            if train:
                error.backward()
            else:
                missed[layer][name] += float(error)

    layers = net.layers()
    hooks = [
        cast(nn.Module, layers[name].teacher).register_forward_hook(
            lambda _m, inputs, z, name=name: run(name, inputs[0], z)
        )
        for name in edges
    ]
    try:
        yield missed
    finally:
        for hook in hooks:
            hook.remove()
