"""Weights in files of the user's, of a teacher whole and of a student's start in part; kept in a run's folder, hashed.

A file is safetensors, or a checkpoint of `torch.save`, which is read with `weights_only=True`, so that nothing in it
runs. Checkpoints come in many shapes: the state dict may lie under a key such as `state_dict`, and wrappers
(`DataParallel`, `torch.compile`, a training class) put a prefix before every name.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nas_kd.callbacks import Note, no_note
from nas_kd.files import save_tensors

State = dict[str, Tensor]

KEY = "teacher.weights"
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "teacher", "weights")
_WRAPPERS = ("module", "_orig_mod")  # components of names that DataParallel and torch.compile add
_MAX_PREFIXES = 3
_LISTED = 3


def load_weights(model: nn.Module, path: Path, note: Note = no_note) -> None:
    """Load a state dict into a model, whole and by name.

    Args:
        model: whose buffers all exist.
        path: safetensors, or a checkpoint of `torch.save`.
        note: called with a sentence on what was done to the names or the numbers.

    Raises:
        ValueError: the file is missing, cannot be read, has numbers that are not finite, or does not fit the model.
    """
    state = _without_prefixes(read_state(path, note), model.state_dict().keys(), path, note)
    own = model.state_dict()
    problems = [
        f"size mismatch for {name}: {tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model"
        for name, value in state.items()
        if name in own and isinstance(own[name], Tensor) and own[name].shape != value.shape
    ]
    hint = "give the model the file's sizes by teacher.settings"
    if not problems:
        tied = _aliases(own)
        result = model.load_state_dict(state, strict=False)
        missing = [name for name in result.missing_keys if not tied.get(name, set()) & state.keys()]
        problems = _counted("missing", missing) + _counted("unexpected", result.unexpected_keys)
        hint = "give the weights of this very model, with its settings"
    if problems:
        listed = "; ".join(problems[:_LISTED])
        more = f"; {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ValueError(f"the weights of {path} do not fit {type(model).__name__}: {listed}{more}; {hint}")
    _check_numbers(model, state, path)


@dataclass(frozen=True)
class Match:
    """The tensors of a file that have the name and the shape of one of a net's.

    Attributes:
        tensors: name -> value.
        other_shape: names that both have, with other shapes.
        missing: tensors of the net that the file lacks.
        share: of the net's parameters, in numbers, that the file gives.
    """

    tensors: State
    other_shape: tuple[str, ...]
    missing: tuple[str, ...]
    share: float

    @property
    def text(self) -> str:
        """What was found, in words."""
        found = f"{len(self.tensors)} tensors, {self.share:.0%} of the parameters"
        parts = _counted("of another shape", self.other_shape) + _counted("not in the file", self.missing)
        return "; ".join([found, *parts])


def match_weights(model: nn.Module, path: Path, key: str, note: Note = no_note) -> Match:
    """What a file has for a net, by name and shape; the net stays as it is.

    Args:
        model: the net.
        path: safetensors, or a checkpoint of `torch.save`.
        key: of the campaign file, for messages.
        note: called with a sentence on what was done to the names or the numbers.

    Raises:
        ValueError: the file is missing, cannot be read, or has numbers that are not finite.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = _without_prefixes(read_state(path, note, key), own.keys(), path, note, key)
    found = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    _check_numbers(model, found, path, key)
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    given = sum(size for name, size in sizes.items() if name in found)
    return Match(
        found,
        tuple(name for name in state if name in own and name not in found),
        tuple(name for name in own if name not in state),
        given / max(sum(sizes.values()), 1),
    )


def read_state(path: Path, note: Note = no_note, key: str = KEY) -> State:
    """The state dict of a file, in float32 where it is half precision.

    Args:
        path: safetensors, or a checkpoint of `torch.save`.
        note: called with a sentence on what was done.
        key: of the campaign file, for messages.

    Raises:
        ValueError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{key} must be a file with a state dict, but there is none at {path}")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{key}: {path} is a pointer of Git LFS and not the weights; fetch the file with `git lfs pull`"
        )
    if start[:2] in (b"PK", b"\x80\x02"):
        state = _state_of(_read_checkpoint(path, key), path, note, key)
    else:
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{key}: {path} is neither safetensors nor a checkpoint of torch.save, or it is damaged; "
                "give a file of safetensors.torch.save_file(model.state_dict(), path)"
            ) from error
    halves = {value.dtype for value in state.values() if value.dtype in (torch.float16, torch.bfloat16)}
    if halves:
        kinds = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in halves))
        note(f"{key}: {kinds} in {path} was cast to float32")
    return {name: value.float() if value.dtype in halves else value for name, value in state.items()}


def _read_checkpoint(path: Path, key: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of archives of torch.jit, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{key}: {path} holds more than tensors, or is damaged, and nothing is unpickled that could run "
            "code; write it again with torch.save(model.state_dict(), path) where it can be loaded"
        ) from error


def _state_of(content: Any, path: Path, note: Note, key: str) -> State:
    """The state dict in the content of a checkpoint."""
    keys: list[str] = []
    while isinstance(content, Mapping):
        nested = {str(name): value for name, value in content.items() if _holds_tensors(value)}
        chosen = next((name for name in _NESTED if name in nested), None)
        if chosen is None and not any(isinstance(value, Tensor) for value in content.values()):
            if len(nested) != 1:
                break
            chosen = next(iter(nested))
        if chosen is None:
            if keys:
                note(f"{key}: took the state dict at {'.'.join(keys)!r} of {path}")
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        keys.append(chosen)
        content = nested[chosen]
    found = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise ValueError(
        f"{key}: {path} must hold a state dict, or one under a key such as state_dict, but has "
        f"{found or 'nothing'}; write it with torch.save(model.state_dict(), path)"
    )


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a mapping with tensors, or one that holds such a mapping."""
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(inner, Tensor) or _holds_tensors(inner) for inner in value.values())


def _without_prefixes(state: State, wanted: Iterable[str], path: Path, note: Note, key: str = KEY) -> State:
    """The state dict under the names of the model, where they differ by a prefix that all of them have."""
    wanted = set(wanted)
    if wanted == state.keys():
        return state
    options: list[tuple[str, dict[str, str]]] = []
    names = {name: name for name in state}
    for _ in range(_MAX_PREFIXES):
        first = {short.partition(".")[0] for short in names.values()}
        if len(first) != 1 or not all("." in short for short in names.values()):
            break
        prefix = first.pop() + "."
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
        stripped = next(name[: len(name) - len(short)] for name, short in names.items())
        options.append((f"stripped {stripped!r} from the names", names))
    inner = {name: ".".join(p for p in name.split(".") if p not in _WRAPPERS) for name in state}
    options.append(("stripped 'module.' and '_orig_mod.' from the names", inner))
    heads = {name.partition(".")[0] for name in wanted}
    if len(heads) == 1:
        head = heads.pop()
        options.append((f"put {head + '.'!r} before the names", {name: f"{head}.{name}" for name in state}))
    best, words, most = {name: name for name in state}, "", len(wanted & state.keys())
    for text, renamed in options:
        fitting = len(wanted & set(renamed.values()))
        if fitting > most and len(set(renamed.values())) == len(renamed):
            best, words, most = renamed, text, fitting
    if words:
        note(f"{key}: {words} of {path}")
    return {best[name]: value for name, value in state.items()}


def _aliases(state: Mapping[str, Any]) -> dict[str, set[str]]:
    """Name -> all names of the same memory: tied weights, of which a file may have one alone."""
    groups: dict[tuple[int, torch.Size], set[str]] = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.numel():
            groups.setdefault((value.data_ptr(), value.shape), set()).add(name)
    return {name: group for group in groups.values() for name in group}


def _counted(word: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    if not listed:
        return []
    dots = ", …" if len(listed) > _LISTED else ""
    return [f"{len(listed)} {word} ({', '.join(listed[:_LISTED])}{dots})"]


def _check_numbers(model: nn.Module, state: State, path: Path, key: str = KEY) -> None:
    """Raise where weights are whole numbers or not finite; buffers may be infinite, as masks of attention are."""
    parameters = {name for name, value in model.named_parameters(remove_duplicate=False) if value.is_floating_point()}
    for name, value in state.items():
        if not value.is_floating_point():
            if name in parameters:
                raise ValueError(
                    f"{key}: {name} of {path} must hold floating-point numbers, but has {value.dtype}, as quantised "
                    "weights do without their scale; give the weights from before the quantisation"
                )
            continue
        if bool(value.isnan().any()) or (name in parameters and not bool(value.isfinite().all())):
            raise ValueError(
                f"{key}: {name} of {path} has values that are not finite (NaN or infinity); give the weights "
                "of a training that did not diverge"
            )


def save_weights(model: nn.Module, path: Path) -> None:
    """Keep the state dict of a model in a safetensors file, tied weights under each of their names."""
    save_tensors(model.state_dict(), path)


def hash_of_weights(model: nn.Module) -> str:
    """A hash of all parameters and buffers of a model, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
