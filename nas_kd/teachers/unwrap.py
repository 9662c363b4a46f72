"""What a net of the user's may come wrapped in is taken off, and what cannot be a teacher is refused by its modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_kd.callbacks import Note


def unwrap(model: nn.Module, note: Note) -> nn.Module:
    """A net without `torch.compile`, `DataParallel` and `DistributedDataParallel`, in float32, on the CPU.

    Args:
        model: of the user's, changed in place.
        note: called with a sentence on what was taken off.

    Raises:
        ValueError: it is scripted, so that its layers cannot be read, or on the meta device.
    """
    taken: dict[str, None] = {}

    def inner(module: nn.Module) -> nn.Module:
        while True:
            if isinstance(original := getattr(module, "_orig_mod", None), nn.Module):
                taken["torch.compile"], module = None, original
            elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
                taken[type(module).__name__], module = None, module.module
            else:
                return module

    model = inner(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (found := inner(child)) is not child:
                setattr(parent, name, found)
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            taken["torch.compile"] = None
            module._compiled_call_impl = None
    if taken:
        note(f"teacher.model: {' and '.join(taken)} was taken off the net")
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        note(f"teacher.model: its {' and '.join(str(k).removeprefix('torch.') for k in kinds)} was cast to float32")
        model.float()
    _check_modules(model)
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("teacher.model: its parameters are on the meta device, without values; build it on the CPU")
    return model.cpu()  # a net that brings itself to a GPU, as DataParallel does; the campaign decides where it runs


def _check_modules(model: nn.Module) -> None:
    """Raise `ValueError` where modules cannot be a teacher's, whatever they compute."""
    for name, module in model.named_modules():
        what = f"its module {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"teacher.model: {what} is scripted by torch.jit, whose layers can neither be read nor counted; return "
                "the net as it was before torch.jit.script or torch.jit.trace"
            )
        try:
            module.train(module.training)
        except NotImplementedError as error:
            raise ValueError(
                f"teacher.model: {what} has no mode of training and none of evaluation, as programs of torch.export; "
                "return the net as it was before torch.export"
            ) from error
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"teacher.model: its weights must be tensors, but {name!r} in its state dict is a "
                f"{type(value).__name__}, which no file of weights takes; return the net as it was before it was "
                "quantised, or let get_extra_state give a tensor"
            )
