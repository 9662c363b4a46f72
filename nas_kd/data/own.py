"""Data sets of users, made by a function that the campaign file names as `module:function`.

The function returns either `Splits` (see `make_splits`) or a mapping with the data sets `train`, `val` and `test` and
with `class_names`, or `num_classes` where classes have no names (0 where items have no class); `flip_safe: False` says
that mirroring changes labels. Where samples hold `mask` or `boxes`, `mask_names` and `box_names` name their values;
`points: True` says that the mask values above 0 are fixation points. Samples may hold `features`, those of each frame,
in place of `clip`; where they hold `labels`, items may have several classes. Where clips hold more than nets are to
see, `frames` and `size`, (height, width), say what nets see.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from nas_kd.data.checked import checked, read_item
from nas_kd.data.sample import ClipDataset, DataError, DataInfo, Subset, check_sample
from nas_kd.data.source import SourceConfig
from nas_kd.data.splits import Splits, make_splits
from nas_kd.settings.imports import torch_kept

_KNOWN_KEYS = frozenset(
    {"train", "val", "test", "class_names", "num_classes", "flip_safe", "mask_names", "box_names", "points"}
    | {"frames", "size"}
)


class OwnConfig(SourceConfig):
    """A function of the user's that returns data sets."""

    stored_by: ClassVar[str] = "larger samples, and `frames` and `size` of what data.function returns"

    source: Literal["own"] = "own"
    items: Literal["clips", "features"] = Field(
        default="clips",
        description="What samples hold; with `features`, the defaults of the file are those of frame features.",
    )
    function: str = Field(description="module:function; modules in the current directory are found.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the function.")

    @classmethod
    def gives_features(cls, section: Mapping[str, object]) -> bool:
        return section.get("items") == "features"

    @field_validator("function")
    @classmethod
    def _two_names(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"function must read module:function, but it is {value!r}; write for example my_data:load")
        return value

    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_own(self, seed=seed, gate_share=gate_share)


def load_own(config: OwnConfig, *, seed: int, gate_share: float = 0.5) -> Splits:
    """Call the user's function and look at one sample of each split.

    Args:
        config: Which function.
        seed: Seed of the split in weights and gates, where the function gives one training set.
        gate_share: Share of the training clips that fits gates.

    Raises:
        DataError: The function cannot be found, or what it returns breaks the contract of `sample`.
    """
    function = _find(config.function)
    try:
        inspect.signature(function).bind(**config.arguments)
    except TypeError as error:
        raise DataError(
            f"data.arguments must fit {config.function}{inspect.signature(function)}, but they are "
            f"{config.arguments}: {error}"
        ) from error
    with torch_kept():
        given = function(**config.arguments)
    if isinstance(given, Splits):
        _check_items(config, given.info)
        bases = {"train": given.weights.base, "val": given.val, "test": given.test}
        sets = _checked_sets(bases, given.info)
        weights, gates = (Subset(sets["train"], part.indices) for part in (given.weights, given.gates))
        return replace(given, weights=weights, gates=gates, val=sets["val"], test=sets["test"])
    if not isinstance(given, Mapping):
        raise DataError(
            f"{config.function} must return Splits or a mapping with train, val, test and class_names, "
            f"but it returned a {type(given).__name__}"
        )
    sets = _sets(config.function, given)
    info = _info(config.function, given, sets["train"])
    _check_items(config, info)
    sets = _checked_sets(sets, info)
    return make_splits(sets["train"], sets["val"], sets["test"], info, seed=seed, gate_share=gate_share)


def _check_items(config: OwnConfig, info: DataInfo) -> None:
    found: Literal["clips", "features"] = "features" if info.feature_size else "clips"
    if config.items != found:
        raise DataError(
            f"data.items must say what {config.function} gives, but it is {config.items} and samples hold "
            f"{info.input_key!r}; set data.items: {found}"
        )


def _find(function: str) -> Callable[..., object]:
    module_name, _, name = function.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        # Stays there: a function may import its neighbours only when it is called, and workers of a loader later still.
        # Last in the path: a folder `analysis` or `trials` of the user's must not hide the package's own.
        sys.path.append(here)
    try:
        with torch_kept():
            module = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name and module_name.split(".")[0] == error.name:
            raise DataError(
                f"data.function {function!r} must name a module that can be imported, but there is no module "
                f"{module_name!r} in {here} or among the installed packages"
            ) from error
        raise DataError(f"module {module_name!r} of data.function failed to import: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise DataError(
            f"data.function {function!r} must name a function of {module_name}, but {name!r} is "
            f"{'not there' if found is None else 'no function'}; choose from {', '.join(functions) or 'none'}"
        )
    return found  # type: ignore[no-any-return]  # callable(): that it returns data sets is checked on what it returns


def _sets(function: str, given: Mapping[str, Any]) -> dict[str, ClipDataset]:
    unknown = sorted(set(given) - _KNOWN_KEYS)
    if unknown:
        raise DataError(
            f"{function} returned the unknown key {unknown[0]!r}; choose from {', '.join(sorted(_KNOWN_KEYS))}"
        )
    sets: dict[str, ClipDataset] = {}
    for name in ("train", "val", "test"):
        if name not in given:
            raise DataError(f"{function} must return train, val and test, but it returned only {sorted(given)}")
        if not isinstance(given[name], ClipDataset):
            raise DataError(
                f"{function}()[{name!r}] must have __len__ and __getitem__, but it is a {type(given[name]).__name__}"
            )
        if len(given[name]) == 0:
            raise DataError(f"{function}()[{name!r}] must hold at least one item, but it is empty")
        sets[name] = given[name]
    return sets


def _info(function: str, given: Mapping[str, Any], train: ClipDataset) -> DataInfo:
    names = given.get("class_names")
    count = given.get("num_classes")
    if names is None and count is None:
        raise DataError(
            f"{function} must return class_names or num_classes beside its data sets, but it returned neither"
        )
    if names is None:
        if not isinstance(count, int):
            raise DataError(f"{function}()['num_classes'] must be an int, but it is a {type(count).__name__}")
        names = [f"class_{index}" for index in range(count)]
    else:
        names = _names(function, given, "class_names")
    names = tuple(names)
    sample = read_item(train, 0, f"{function}()['train'][0]")
    holds = sample if isinstance(sample, Mapping) else {}
    features, clip = holds.get("features"), holds.get("clip")
    common: dict[str, Any] = {
        "num_classes": len(names) if count is None else count,
        "class_names": names,
        "name": function,
        "multi_label": "labels" in holds,
    }
    if clip is None and isinstance(features, Tensor) and features.ndim == 2 and features.numel():
        return DataInfo(
            frames=_frames(function, given, len(features)),
            height=0,
            width=0,
            feature_size=features.shape[1],
            stored_frames=len(features),
            flip_safe=False,
            **common,
        )
    if not isinstance(clip, Tensor) or clip.ndim != 4:
        raise DataError(
            f"{function}()['train'][0] must be a dict with 'clip', a uint8 tensor [3, T, H, W], or with 'features', a "
            f"float32 tensor [T, D], but it is {_describe(sample)}"
        )
    stored_frames, *stored_size = clip.shape[1:]
    size = given.get("size", stored_size)
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{function} must return size as (height, width), what nets see of a frame, but it is {size!r}"
        ) from error
    return DataInfo(
        frames=_frames(function, given, stored_frames),
        height=height,
        width=width,
        stored_frames=stored_frames,
        stored_size=(stored_size[0], stored_size[1]),
        flip_safe=bool(given.get("flip_safe", True)),
        mask_names=_names(function, given, "mask_names"),
        box_names=_names(function, given, "box_names"),
        points=bool(given.get("points", False)),
        **common,
    )


def _frames(function: str, given: Mapping[str, Any], stored: int) -> int:
    """How many frames nets see."""
    frames = given.get("frames", stored)
    if type(frames) is not int or frames < 1:
        raise DataError(
            f"{function} must return frames as a whole number ≥ 1, what nets see of an item, but it is {frames!r}"
        )
    return frames


def _names(function: str, given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = given.get(key, ())
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise DataError(
            f"{function}()[{key!r}] must be a list of names, but it is a {type(names).__name__}; "
            'write for example ["background", "object"]'
        )
    return tuple(map(str, names))


def _checked_sets(sets: Mapping[str, ClipDataset], info: DataInfo) -> dict[str, ClipDataset]:
    """The data sets, of which each item is checked when it is read."""
    for name, dataset in sets.items():
        check_sample(read_item(dataset, 0, f"{name}[0]"), info, f"{name}[0]")
        labels = getattr(dataset, "labels", None)
        if labels is None:
            continue
        try:
            classes = [int(label) for label in labels]
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{name}.labels must give each item one class, a whole number, but it is {_kind_of(labels)}; "
                "give the attribute another name if it holds something else"
            ) from error
        wrong = [label for label in classes if info.num_classes and not 0 <= label < info.num_classes]
        if wrong or len(classes) != len(dataset):
            raise DataError(
                f"{name}.labels must give each of {len(dataset)} items a class in 0..{info.num_classes - 1}, but it "
                f"gives {len(classes)} items" + (f" and holds {wrong[0]}" if wrong else "")
            )
    return {name: checked(dataset, info, name) for name, dataset in sets.items()}


def _describe(sample: object) -> str:
    if isinstance(sample, Mapping):
        return "a dict with " + ", ".join(
            f"{key}: {list(getattr(value, 'shape', []))}" for key, value in sample.items()
        )
    return f"a {type(sample).__name__}"


def _kind_of(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" of the shape {list(shape)}")
