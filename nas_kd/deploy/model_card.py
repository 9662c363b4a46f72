"""The model card of an exported student (Mitchell et al., Model Cards for Model Reporting, FAT* 2019), in markdown."""

from __future__ import annotations

from collections.abc import Iterator

from nas_kd.deploy.bundle import BundleInfo, Measured
from nas_kd.deploy.record import ExportRecord
from nas_kd.deploy.reduced import ENDINGS
from nas_kd.tasks import TASKS

CARD_NAME = "MODEL_CARD.md"
NOT_STATED = "not stated"


def model_card(info: BundleInfo, record: ExportRecord) -> str:
    """What somebody must know who gets the bundle, from what stands in it.

    Args:
        info: of the bundle.
        record: of its export.
    """
    number = "" if info.trial is None else f", trial {info.trial}"
    parts = [
        f"# {info.task} on {info.data or 'unnamed data'}{number}",
        "\n".join(_facts(info, record)),
        "## Metrics\n\n" + "\n".join(_metrics(info, _primary(info, record))),
    ]
    if record.validation:
        parts.append(f"## Measured again from each file, on {record.validated_on}\n\n" + "\n".join(_measured(record)))
    if rounded := list(_less_precise(record)):
        parts.append("## Files of less precision\n\n" + "\n".join(rounded))
    parts += [
        f"## Input and output\n\n{_input(info)}\n\n{_output(info)}",
        f"## Intended use\n\n{info.intended_use or NOT_STATED}",
        f"## License of the weights\n\n{info.license or NOT_STATED}",
        "## Limits\n\n" + _limits(info),
        "## Files\n\n" + "\n".join(f"- `{name}`, SHA-256 `{digest}`" for name, digest in info.files.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(info: BundleInfo, record: ExportRecord) -> Iterator[str]:
    unit = "frame, amortised" if info.keyframe_interval is not None else info.input_type.unit
    yield "| | |"
    yield "|---|---|"
    yield f"| architecture | `{info.arch_id}`, space `{info.arch['space']}` |"
    yield f"| cost | {info.flops:,} FLOPs a {unit}; {info.params:,} parameters |"
    yield f"| FLOPs | {record.flops_convention} |"
    if info.keyframe_interval is not None:
        key, delta = info.keyframe_flops or 0, info.delta_flops or 0
        yield f"| stream | key frame every {info.keyframe_interval} frames: {key:,} FLOPs, others {delta:,} |"
        yield f"| state | {info.state_bytes or 0:,} bytes a stream |"
    yield f"| trained on | {info.data or NOT_STATED}, seed {info.seed} |"
    yield f"| teacher | `{info.teacher or NOT_STATED}` |"


def _primary(info: BundleInfo, record: ExportRecord) -> str | None:
    """Name of the primary metric, which intervals are of; None of a task of the user's that was not measured again."""
    if info.task in TASKS:
        return TASKS[info.task].metric
    return record.validation[0].metric if record.validation else None


def _metrics(info: BundleInfo, primary: str | None) -> Iterator[str]:
    if not info.metrics:
        yield NOT_STATED
        return
    yield "| split | metric | value | 95 % interval over items | items |"
    yield "|---|---|---|---|---|"
    for split, metrics in info.metrics.items():
        rests = info.measured.get(split)
        for name, value in metrics.items():
            if "@" in name:
                continue  # of one offset from the key frame
            interval = _interval(rests) if name == primary else ""
            yield f"| {split} | {name} | {value:.4f} | {interval} | {_items(rests)} |"
    if info.trainings is not None:
        yield ""
        for split, means in info.trainings.metrics.items():
            if primary is None or primary not in means:
                continue
            name, over = primary, means[primary]
            interval = "" if over.low is None else f", 95 % interval of the mean {over.low:.4f} to {over.high:.4f}"
            yield f"{name} on {split} over {len(over.values)} trainings: mean {over.mean:.4f}{interval}."


def _measured(record: ExportRecord) -> Iterator[str]:
    yield "| files | metric | value | largest difference of an output |"
    yield "|---|---|---|---|"
    for form in record.validation:
        apart = "" if form.max_abs_difference is None else f"{form.max_abs_difference:.1e}"
        yield f"| {', '.join(form.files)} | {form.metric} | {form.value:.4f} | {apart} |"


def _less_precise(record: ExportRecord) -> Iterator[str]:
    """What the files of less precision are, and whether their metric is known."""
    measured = {file for form in record.validation for file in form.files}
    for entry in record.parity:
        if not entry.is_exact:
            known = "its metric is above" if entry.file in measured else "its metric was not measured"
            yield (
                f"- `{entry.file}` rounds weights and activations: {entry.bytes:,} bytes, outputs on random inputs "
                f"differ by at most {entry.max_abs_difference:.2g} (largest output {entry.largest_logit:.2g}); {known}."
            )
    for warning in record.warnings:
        yield f"- **Warning:** {warning}."
    if any(entry.file.endswith(ENDINGS["onnx-fp16"]) for entry in record.parity):
        yield (
            "- Figures of the 16-bit file are from a CPU, where ONNX Runtime computes much of it in 32 bits; on a GPU "
            "it was not measured."
        )


def _input(info: BundleInfo) -> str:
    if info.mean is None:
        return f"Frame features, float32 (N, {info.input_shape[0]}, {info.input_shape[1]}), as they are."
    height, width = info.source_size
    sentences = [f"{info.source_frames} RGB frames of {height} × {width} pixels (height × width)."]
    if info.decoding is not None:
        is_uniform = info.decoding.sampling == "uniform"
        how = "at equal distances over the whole file" if is_uniform else "that follow each other"
        fit = "scaled to cover and cut in the middle" if info.decoding.fit == "crop" else "stretched"
        sentences.append(f"They are frames {how}, upright, {fit} (resampled by areas).")
    sentences.append(f"Normalised as (frame / 255 − mean) / std, mean {list(info.mean)}, std {list(info.std or ())}.")
    if info.view is not None and info.view.size is not None:
        (height, width), frames = info.view.size, list(info.view.frames)
        sentences.append(f"The student reads frames {frames} of these, resampled bilinearly to {height} × {width}.")
    shape = ", ".join(map(str, ("N", *info.input_shape)))
    sentences.append(f"The net's input is float32 ({shape}).")
    return " ".join(sentences)


def _output(info: BundleInfo) -> str:
    return f"Classes, by index: {', '.join(info.class_names)}." if info.class_names else "Outputs without names."


def _limits(info: BundleInfo) -> str:
    groups = any(each.num_groups is not None for each in info.measured.values())
    return (
        "The student was chosen by its validation metric, which is optimistic for that reason; the test metric was "
        "measured once and chose nothing. The intervals say how far other items of the same kind would move a metric"
        f"{', with items of one group counted together' if groups else ''}; they say nothing of other kinds of video."
    )


def _interval(rests: Measured | None) -> str:
    return "" if rests is None or rests.low is None else f"{rests.low:.4f} to {rests.high:.4f}"


def _items(rests: Measured | None) -> str:
    if rests is None:
        return ""
    return f"{rests.num_items}" if rests.num_groups is None else f"{rests.num_items} of {rests.num_groups} groups"
