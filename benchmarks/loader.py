"""How fast clips are read beside a training step: `python benchmarks/loader.py [--keep]`.

For 8, 16 and 32 frames of 112 × 112 pixels: clips a second that are decoded from H.264 files of 320 × 240 pixels, and
clips a second from the cache of decoded clips, by the thread and by one and two worker processes; beside them one step
(forward, backward, optimizer) of the teacher `r2plus1d` with its default widths, alone and while a thread reads ahead.
Values that end in `_cpu` count processor seconds of the process, so that other work on the machine does not count; the
others are by the clock.

Before that `--clips` (100,000) tiny clips go into a cache and an epoch of them is read: seconds, files, and how
much the memory of the process grew. The last line is one JSON object, which `--keep` writes to
`benchmarks/results/loader.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from kept_result import print_result
from torch import nn

from nas_kd.config import validate
from nas_kd.data import ClipDataset, ClipLoader, FolderConfig, Sample, load, normalize
from nas_kd.data.cache import ClipCache, Entry
from nas_kd.data.decode import read_clip
from nas_kd.trial import build_context

RESULT = Path(__file__).parent / "results" / "loader.json"
SIZE, BATCH = 112, 8
FRAMES = (8, 16, 32)


def write_videos(root: Path, number: int) -> None:
    """Videos of 75 frames of moving noise, with their csv file."""
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for index in range(number):
        background = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        with av.open(str(root / f"{index}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
            for frame in range(75):
                moved = np.roll(background, 3 * frame, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
            container.mux(stream.encode(None))
        split = "val" if index == 0 else "test" if index == 1 else "train"
        rows.append(f"{index}.mp4,{index // 2 % 2},{split}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


class Decoding:
    """Clips that are decoded each time they are read."""

    reads_ahead = True

    def __init__(self, paths: list[Path], frames: int) -> None:
        self.paths = paths
        self.frames = frames

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Sample:
        clip = read_clip(self.paths[index], self.frames, SIZE, SIZE, "crop")
        return {"clip": torch.from_numpy(clip), "label": torch.tensor(index // 2 % 2)}


class Repeated:
    """A data set several times over, so that the start of an epoch does not count."""

    reads_ahead = True

    def __init__(self, base: ClipDataset) -> None:
        self.base = base

    def __len__(self) -> int:
        return 8 * len(self.base)

    def __getitem__(self, index: int, /) -> Sample:
        return self.base[index % len(self.base)]


def clips_per_s(loader: ClipLoader, seconds: float) -> tuple[float, float]:
    """Clips a second by the clock and a processor second, after four batches in which processes start."""
    batches = loader.epoch(0)
    for _ in range(4):
        next(batches)
    read, begin, begin_cpu = 0, time.perf_counter(), time.process_time()
    for batch in batches:
        read += len(batch["label"])
        if time.perf_counter() - begin > seconds:
            break
    return read / (time.perf_counter() - begin), read / (time.process_time() - begin_cpu)


def step_of(net: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """One training step of a net."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def step(clip: torch.Tensor, label: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(normalize(clip, [0.5] * 3, [0.5] * 3)), label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def step_s(loader: ClipLoader, step: Callable[[torch.Tensor, torch.Tensor], None], number: int) -> tuple[float, float]:
    """Processor seconds of a step on a batch that is there, and of one with the reading of the next batch; medians."""
    alone: list[float] = []
    reading: list[float] = []
    batch = next(loader.epoch(0))
    for _ in range(number):
        begin = time.process_time()
        step(batch["clip"], batch["label"])
        alone.append(time.process_time() - begin)
    for batch in loader.epoch(0):
        begin = time.process_time()
        step(batch["clip"], batch["label"])
        reading.append(time.process_time() - begin)
        if len(reading) == number:
            break
    return float(np.median(alone)), float(np.median(reading))


def measure(root: Path, frames: int, seconds: float) -> dict[str, Any]:
    """Clips a second of each way of reading, and the seconds of a step."""
    config = FolderConfig(root=root, frames=frames, size=SIZE, cache_dir=root / "cache", decode_threads=1)
    begin = time.process_time()
    stored = load(config, seed=0).retrain
    fill_s = time.process_time() - begin
    decoding = Decoding(sorted(root.glob("*.mp4")), frames)
    row: dict[str, Any] = {"fill_cpu": round(len(decoding) / fill_s, 1)}
    for name, dataset in (("decoded", decoding), ("cache", stored)):
        for workers in (0, 1, 2):
            loader = ClipLoader(Repeated(dataset), BATCH, num_workers=workers)
            wall, cpu = clips_per_s(loader, seconds)
            row[f"{name}_{workers}_workers"] = round(wall, 1)
            if workers == 0:
                row[f"{name}_cpu"] = round(cpu, 1)
    teacher = build_context(
        validate(
            {
                "name": "loader",
                "data": {"source": "generated", "frames": frames, "size": SIZE, "num_train": 48, "num_val": 12},
                "space": {"resolution": [SIZE], "frames": [frames]},
                "budget": {"max_flops": "10T"},
            },
            source="benchmarks/loader.py",
        ),
        "cpu",
    ).teacher_model.train()
    alone, reading = step_s(ClipLoader(stored, BATCH), step_of(teacher), 3)
    row |= {"step_cpu_s": round(alone, 3), "step_while_reading_cpu_s": round(reading, 3)}
    row["step_cpu"] = round(BATCH / alone, 1)
    return row


class Tiny:
    """Clips of 2 frames of 8 × 8 pixels from a cache."""

    reads_ahead = True

    def __init__(self, folder: Path, number: int) -> None:
        self.cache = ClipCache(folder, 10**10)
        self.keys = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(number)]

    def __len__(self) -> int:
        return len(self.keys)

    def entry(self, index: int) -> Entry:
        """What the cache holds of a clip."""
        return Entry(self.keys[index], (3, 2, 8, 8), lambda: np.full((3, 2, 8, 8), index % 251, np.uint8))

    def __getitem__(self, index: int, /) -> Sample:
        return {"clip": torch.from_numpy(self.cache.read(*self.entry(index))), "label": torch.tensor(0)}


def anonymous_mb() -> float:
    """Megabytes of the process that are no pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def many_clips(folder: Path, number: int) -> dict[str, Any]:
    """Fill a cache with many clips and read an epoch of them."""
    before, begin = anonymous_mb(), time.process_time()
    tiny = Tiny(folder, number)
    tiny.cache.fill([tiny.entry(index) for index in range(number)], threads=1)
    filled, fill_s = anonymous_mb(), time.process_time() - begin
    begin, most = time.process_time(), 0.0
    wrong = 0
    for count, batch in enumerate(ClipLoader(tiny, 64, shuffle=True).epoch(0)):
        wrong += int((batch["clip"][:, 0, 0, 0, 0] != batch["index"] % 251).sum())
        if count % 100 == 0:
            most = max(most, anonymous_mb())
    assert wrong == 0, f"{wrong} clips are not those that were written"
    epoch_s = time.process_time() - begin
    return {
        "clips": number,
        "files": len(tiny.cache.shards),
        "fill_cpu_s": round(fill_s, 1),
        "epoch_cpu_s": round(epoch_s, 1),
        "grown_mb_after_filling": round(filled - before, 1),
        "grown_mb_while_reading": round(most - before, 1),
        "clips_mb": round(number * 3 * 2 * 8 * 8 / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--keep", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        many = many_clips(Path(folder), options.clips)
        print(", ".join(f"{name} {value:,}" for name, value in many.items()), flush=True)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_videos(Path(folder), 34)
        for frames in FRAMES:
            row = rows[f"{frames} frames"] = measure(Path(folder), frames, options.seconds)
            print(f"{frames} frames: " + ", ".join(f"{name} {value:,}" for name, value in row.items()), flush=True)
    found = {"batch_size": BATCH, "settings": rows, "many_clips": many}
    print_result("loader", found, threads="one thread for nets", keep=RESULT if options.keep else None)


if __name__ == "__main__":
    main()
