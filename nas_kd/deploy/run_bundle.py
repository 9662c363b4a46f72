"""Run the student beside this script on videos: `python run.py VIDEO ...`, with numpy, onnxruntime and PyAV alone.

Of a student of clips it prints labels and scores as JSON; of one that answers for frames it writes the outputs of all
frames to VIDEO.npz. `nas-kd predict` does more: overlays, damaged files, folders of images, cameras.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnxruntime
from av.video.reformatter import Interpolation

HERE = Path(__file__).parent
INFO: dict[str, Any] = json.loads((HERE / "arch.json").read_text())
DECODING = INFO["decoding"] or {"fit": "crop", "stored": None}
SEEN = (INFO["source_frames"], *INFO["source_size"])
STORED = DECODING["stored"] or SEEN


def graph(name: str) -> Any:
    """A function of the inputs of an ONNX graph that gives the list of its outputs, the student's first."""
    file = f"{name}.onnx"
    content = (HERE / file).read_bytes()
    if hashlib.sha256(content).hexdigest() != INFO["files"].get(file):
        sys.exit(f"{file} is not the file that was written with arch.json: damaged, cut short or exchanged")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Any) -> list[Any]:
        outputs: list[Any] = session.run(None, dict(zip(names, inputs, strict=True)))
        if not np.isfinite(outputs[0]).all():  # sorting them would make an answer of them
            raise FloatingPointError(f"the student gives no answer: outputs of {file} are NaN or infinite")
        return outputs

    return run


def pixels(frame: av.VideoFrame, aspect: float) -> Any:
    """uint8 [3, H, W], RGB: upright, scaled by areas, and cut or stretched to the stored size."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    height, width = STORED[1:] if turns % 2 == 0 else (STORED[2], STORED[1])
    wide, tall, top, left = width, height, 0, 0
    if DECODING["fit"] == "crop":
        shown = max(1, round(frame.width * aspect))
        scale = max(height / frame.height, width / shown)
        tall, wide = max(height, round(frame.height * scale)), max(width, round(shown * scale))
        top, left = (tall - height) // 2, (wide - width) // 2
    image = frame.reformat(width=wide, height=tall, format="rgb24", interpolation=Interpolation.AREA).to_ndarray()
    return np.rot90(image[top : top + height, left : left + width], turns).transpose(2, 0, 1)


def frames(path: Path) -> Iterator[tuple[float | None, Any]]:
    """Time in seconds and a function that gives the pixels, of each frame of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        aspect = float(stream.sample_aspect_ratio or 1)
        for frame in container.decode(stream):
            yield frame.time, lambda frame=frame: pixels(frame, aspect)


def positions(times: list[float], wanted: int) -> Any:
    """Numbers of the frames that are shown at the middles of `wanted` equal parts of the time."""
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    even = np.linspace(times[0], times[-1], len(times))
    if usual <= 0 or np.abs(np.asarray(times) - even).max() <= min(1e-3, usual / 4):
        return ((np.arange(wanted) + 0.5) * len(times) / wanted).astype(int)
    middles = times[0] + (np.arange(wanted) + 0.5) * (times[-1] + usual - times[0]) / wanted
    return np.searchsorted(times, middles + 1e-9 * (1 + np.abs(middles)), side="right") - 1


def prepared(clip: Any) -> Any:
    """uint8 [3, T, H, W] of the size that is seen -> float32 [1, 3, t, h, w] that the student reads."""
    mean, std = (np.array(INFO[name], np.float32).reshape(3, 1, 1, 1) for name in ("mean", "std"))
    clip = clip.astype(np.float32) * (1 / (255 * std)) - mean / std
    if INFO["view"] is None:
        return clip[None]
    clip = clip[:, INFO["view"]["frames"]]
    for axis, size in ((2, INFO["view"]["size"][0]), (3, INFO["view"]["size"][1])):
        place = np.clip((np.arange(size) + 0.5) * clip.shape[axis] / size - 0.5, 0, None)
        low = place.astype(int)
        share = (place - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, clip.shape[axis] - 1)
        clip = clip.take(low, axis) * (1 - share) + clip.take(high, axis) * share
    return np.ascontiguousarray(clip[None], np.float32)


def classify(path: Path) -> dict[str, float]:
    """Label -> score, the highest first."""
    times = [time for time, _ in frames(path)]
    known = [number / 25 if time is None else time for number, time in enumerate(times)]
    wanted = positions(known, STORED[0])
    chosen = {number: read() for number, (_, read) in enumerate(frames(path)) if number in wanted}
    clip = np.stack([chosen[number] for number in wanted], 1)
    clip = clip[:, ((np.arange(SEEN[0]) + 0.5) * STORED[0] / SEEN[0]).astype(int)]
    top, left = (STORED[1] - SEEN[1]) // 2, (STORED[2] - SEEN[2]) // 2
    logits = graph("student")(prepared(clip[:, :, top : top + SEEN[1], left : left + SEEN[2]]))[0][0].astype(np.float64)
    scores = 1 / (1 + np.exp(-logits))
    if INFO["task"] == "classification":
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-scores, kind="stable")
    return {INFO["class_names"][number]: float(scores[number]) for number in order}


def maps(path: Path) -> Any:
    """The outputs [F, C, h, w] of all frames."""
    shown = [read() for _, read in frames(path)]
    if INFO["view"] is not None:  # several frames from each one on
        student, span = graph("student"), np.arange(SEEN[0])
        clips = (np.stack([shown[min(t + n, len(shown) - 1)] for n in span], 1) for t in range(len(shown)))
        return np.concatenate([student(prepared(clip))[0] for clip in clips])
    inputs = [prepared(frame[:, None])[:, :, 0] for frame in shown]
    if INFO["keyframe_interval"] is None:
        student = graph("student")
        return np.concatenate([student(frame)[0] for frame in inputs])
    key, delta, outputs, state = graph("key"), graph("delta"), [], []
    for number, frame in enumerate(inputs):
        if number % INFO["keyframe_interval"] == 0:
            output, *state = key(frame)
        else:
            (output,) = delta(frame, *state)
        outputs.append(output)
    return np.concatenate(outputs)


def answer(name: str) -> dict[str, Any]:
    """What is printed of a video."""
    if INFO["task"] in ("classification", "multilabel"):
        return {"path": name, "scores": classify(Path(name))}
    np.savez_compressed(f"{name}.npz", outputs=maps(Path(name)))
    return {"path": name, "written": f"{name}.npz"}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit("name videos: python run.py VIDEO ...")
    status = 0
    for video in sys.argv[1:]:
        try:
            print(json.dumps(answer(video)))
        except FloatingPointError as error:
            print(json.dumps({"path": video, "error": str(error)}))
            status = 1
    sys.exit(status)
