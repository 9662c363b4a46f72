"""The caches of the teacher's outputs, one for each augmentation that trainings use: computed, checked, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_kd.callbacks import Note, OnProgress
from nas_kd.data import Augment, Batch, ClipLoader, Subset, Views
from nas_kd.data.fingerprint import changing_item, fingerprint, spread
from nas_kd.objectives import DistillationLoss
from nas_kd.preparation.nets import TrialNets, build_nets, build_objective
from nas_kd.preparation.proposals import proposals, structure_key
from nas_kd.taps import Taps
from nas_kd.teachers import Teacher, is_precomputed
from nas_kd.teachers.cache import DTYPES, CacheKey, Manifest, TeacherCache, folder_name, read_manifest
from nas_kd.teachers.cache_files import CacheError, check_blocks, fill, kept_bytes, new_manifest, remove
from nas_kd.teachers.weights import hash_of_weights
from nas_kd.trial import CampaignContext

NUM_CHECKED = 4  # items whose outputs are computed again when a campaign starts
TOLERANCE = {"float16": 0.01, "bfloat16": 0.03}  # of the largest value of a map: devices and batches round differently
_WORDS = {
    "data": "other data",
    "num_items": "other data",
    "inputs": "inputs of another kind",
    "positions": "clips of another length",
    "teacher": "another teacher",
    "views": "another number of views",
    "seed": "another seed",
    "dtype": "another type",
}


def prepare_caches(context: CampaignContext, folder: Path, content: str, progress: OnProgress, note: Note) -> None:
    """Bring the caches of a run up to date. Of what is there, only what was checked stays.

    Args:
        context: with the frozen teacher.
        folder: of all caches of the run; each has a folder of its own in it.
        content: hash of the content of the training items.
        progress: called with the share that is done and a text.
        note: called with a sentence on what was computed again or is not kept, and why.
    """
    key = context.input_type.key
    wanted = wanted_outputs(context, content)
    if wanted and (item := changing_item(context.splits.retrain.base, key)) is not None:
        note(
            f"item {item} of the training data differs when it is read again, so the teacher's outputs are not kept, "
            "and every step runs the teacher"
        )
        wanted = {}
    for old in [path for path in folder.glob("*") if path.is_dir() and path.name not in map(folder_name, wanted)]:
        remove(old)
    room = context.config.teacher.cache.max_bytes
    for augment, (cache_key, taps) in wanted.items():
        with closing(Teacher(context.teacher_model, taps)) as module:
            outputs = _Outputs(context, module, Views(augment, cache_key.seed, cache_key.views))
            room -= _prepare_cache(outputs, folder / folder_name(augment), cache_key, room, progress, note)


def wanted_outputs(context: CampaignContext, content: str) -> dict[Augment, tuple[CacheKey, tuple[str, ...]]]:
    """What trainings take from caches: augmentation -> what its outputs depend on, and the modules that give them.

    Args:
        context: with the frozen teacher.
        content: hash of the content of the training items.
    """
    config, dataset = context.config.teacher.cache, context.splits.retrain.base
    taps = cached_taps(context) if config.views > 0 and not is_precomputed(context.teacher_model) else {}
    if not taps:
        return {}
    shared: dict[str, Any] = {
        "data": fingerprint(dataset, context.input_type.key, content),
        "num_items": len(dataset),
        "inputs": f"{context.input_type.reads} {context.input_type.shape} {context.config.normalize!r}",
        "positions": context.input_type.positions,
        "teacher": hash_of_weights(context.teacher_model),
        "seed": context.config.seed,
        "dtype": config.dtype,
    }
    return {
        augment: (CacheKey(augment=augment, views=1 if augment == "none" else config.views, **shared), names)
        for augment, names in taps.items()
    }


def have_outputs(context: CampaignContext, folder: Path, content: str) -> bool:
    """Whether the caches in a folder have all that trainings would take from them.

    Args:
        context: with the frozen teacher, and with training items of which `identity` has said that they are the same,
            whatever became of their files' times.
        folder: of all caches of a run.
        content: hash of the content of the training items.
    """
    for augment, (key, taps) in wanted_outputs(context, content).items():
        manifest = read_manifest(folder / folder_name(augment))
        if manifest is None or not manifest.is_complete or not set(taps) <= set(manifest.outputs):
            return False
        if set(manifest.key.differences(key)) - {"data"}:
            return False
    return True


def bytes_on_disk(context: CampaignContext) -> dict[Augment, int]:
    """What `prepare_caches` would keep of each augmentation, whatever the limit.

    Args:
        context: checked, with a teacher that need not be trained. No item is read.
    """
    config, found = context.config.teacher.cache, dict[Augment, int]()
    if config.views == 0 or is_precomputed(context.teacher_model):
        return found
    items = len(context.splits.retrain.base) * context.input_type.positions
    for augment, taps in cached_taps(context).items():
        with closing(Taps(context.teacher_model.eval(), taps)) as tapped, torch.no_grad():
            output = tapped(context.teacher_example())
        values = sum(value.numel() for value in (output.logits, *output.features.values()))
        views = 1 if augment == "none" else config.views
        found[augment] = items * views * values * DTYPES[config.dtype].itemsize
    return found


def cached_taps(context: CampaignContext) -> dict[Augment, tuple[str, ...]]:
    """Modules of the teacher whose outputs trainings distil from a cache, by the augmentation of the trainings.

    Augmentations are left out where no training uses teacher outputs that depend on the view alone.
    """
    taps: dict[Augment, dict[str, None]] = {}
    for augment, objective in _cached_objectives(context):
        if objective.uses_teacher:
            taps.setdefault(augment, {}).update(dict.fromkeys(objective.teacher_taps))
    return {augment: tuple(names) for augment, names in taps.items()}


def _cached_objectives(context: CampaignContext) -> list[tuple[Augment, DistillationLoss]]:
    """Of all that trainings may have, those that ask the teacher for what depends on the view alone."""
    found: dict[tuple[str, ...], tuple[Augment, DistillationLoss]] = {}
    built: dict[str, TrialNets] = {}
    for proposal in proposals(context.config, context.space):
        search, retrain = proposal.config.search, proposal.config.retrain
        for knobs, is_search in product(proposal.knobs, (True, False)):
            config, fits = (search.objective, search) if is_search else (proposal.config.objective, retrain)
            key = (str(is_search), str(knobs), structure_key(config), str(fits.augment))
            if key in found or not config.distils or config.needs_online_teacher or fits.mix.is_on:
                continue
            if str(knobs) not in built:
                built[str(knobs)] = build_nets(context, knobs)
            nets = built[str(knobs)]
            net = nets.supernet if is_search else nets.students[0]
            found[key] = fits.augment, build_objective(context, config, nets, net)
    return list(found.values())


@dataclass(frozen=True)
class _Outputs:
    """The outputs of the teacher for the views of the training items.

    Attributes:
        context: data and device.
        teacher: with the wanted taps.
        views: of the items.
    """

    context: CampaignContext
    teacher: Teacher
    views: Views

    def items(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Batches of training items in the given order, not augmented."""
        part = Subset(self.context.splits.retrain.base, indices)
        keys, workers = (self.context.input_type.key,), self.context.config.data.workers
        return ClipLoader(part, batch_size, device=self.context.device, keys=keys, num_workers=workers).epoch(0)

    def __call__(self, batch: Batch, view: int) -> Mapping[str, Tensor]:
        """Name -> outputs (N, P, …) for a view of such a batch."""
        input_type = self.context.input_type
        splits = self.context.splits
        shown = self.views.show(
            batch, view, len(splits.retrain.base), splits.info.seen, consecutive=splits.info.consecutive
        )
        parts: dict[str, list[Tensor]] = {}
        for inputs in torch.split(input_type.teacher_inputs(shown), self.context.eval_batch_size):
            output = self.teacher(inputs)
            for name, value in {"logits": output.logits, **output.features}.items():
                if len(value) != len(inputs):
                    raise CacheError(
                        f"module {name!r} of the teacher returns {len(value)} rows for {len(inputs)} inputs, so they "
                        "cannot be assigned to inputs"
                    )
                parts.setdefault(name, []).append(value)
        joined = {name: torch.cat(values) for name, values in parts.items()}
        shape = (len(batch["index"]), input_type.positions)
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in joined.items()}


def _prepare_cache(outputs: _Outputs, folder: Path, key: CacheKey, room: int, progress: OnProgress, note: Note) -> int:
    """Bring one cache up to date; returns its size in bytes, 0 where it is not kept."""
    try:
        one = outputs(next(outputs.items([0], 1)), 0)
        shapes = {name: tuple(value.shape[2:]) for name, value in one.items()}
        empty = new_manifest(key, shapes, outputs.context.input_type.eval_batch_size)
        _check_room(empty.total_bytes, key, folder, room)
        manifest = _kept(outputs, folder, empty, progress, note)
        if manifest is None:
            remove(folder)
            manifest = empty
        if not manifest.is_complete:
            block = manifest.block
            manifest = fill(folder, manifest, lambda indices: outputs.items(indices, block), outputs, progress)
        return manifest.total_bytes
    except (CacheError, OSError) as error:
        remove(folder)
        reason = str(error) if isinstance(error, CacheError) else f"{folder} gave {error.strerror or error}"
        which = folder_name(key.augment)
        note(f"augment: {which}: the teacher's outputs are not kept, and every step runs the teacher: {reason}")
        return 0


def _kept(outputs: _Outputs, folder: Path, empty: Manifest, progress: OnProgress, note: Note) -> Manifest | None:
    """What can be used of the cache in a folder; None where there is nothing."""
    known = read_manifest(folder)
    if known is None:
        return None
    reasons = [_WORDS.get(name, name) for name in known.key.differences(empty.key)]
    shapes = {name: output.shape for name, output in known.outputs.items()}
    if any(shapes.get(name) != output.shape for name, output in empty.outputs.items()):
        reasons.append("other modules of the teacher")
    if reasons:
        note(
            f"the teacher's outputs in {folder} are of {' and '.join(dict.fromkeys(reasons))}; they are computed again"
        )
        return None
    checked = check_blocks(folder, known, progress)
    damaged = sum(now != before for now, before in zip(checked.checksums, known.checksums, strict=True))
    if damaged:
        note(
            f"{damaged} of {len(known.checksums)} blocks of the teacher's outputs in {folder} are damaged; they are "
            "computed again"
        )
    if not checked.is_complete:  # of modules that no term uses any more, no further blocks can be computed
        return checked if shapes.keys() == empty.outputs.keys() else None
    if not _agree(outputs, folder, known.key):
        note(f"the teacher's outputs in {folder} are not its present outputs; they are computed again")
        return None
    return checked


def _check_room(size: int, key: CacheKey, folder: Path, room: int) -> None:
    """Raise `CacheError` where a cache exceeds what is allowed or what is free."""
    what = f"{key.views} views of {key.num_items} items take {size / 1e9:.3g} GB"
    fitting = key.views * room // max(size, 1)
    advice = f", or lower teacher.cache.views to {fitting}" if fitting else ""
    if size > room:
        raise CacheError(f"{what}, but teacher.cache.max_bytes leaves {room / 1e9:.3g} GB; set it higher{advice}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free + kept_bytes(folder)
    if size > free:
        raise CacheError(f"{what}, but {folder.parent} has {free / 1e9:.3g} GB left; free some space")


def _agree(outputs: _Outputs, folder: Path, key: CacheKey) -> bool:
    """Whether a complete cache has the teacher's present outputs for a few items."""
    cache = TeacherCache(folder)
    for batch in outputs.items(spread(key.num_items, NUM_CHECKED), NUM_CHECKED):
        position = torch.arange(key.positions).expand(len(batch["index"]), -1)
        for view in range(key.views):
            kept = cache({**batch, "view": torch.full_like(batch["index"], view), "position": position})
            for name, value in outputs(batch, view).items():
                rows = kept.logits if name == "logits" else kept.features[name]
                stored = rows.reshape(key.positions, -1, *rows.shape[1:]).transpose(0, 1)
                limit = TOLERANCE[key.dtype] * value.abs().max().clamp_min(torch.finfo(DTYPES[key.dtype]).tiny)
                if not bool(((stored - value).abs() <= limit).all()):
                    return False
    return True
