"""What frames and resolution are worth on the generated clips, and how fast clips are made.

A small (2+1)-D net is trained on the default clips at several numbers of frames and resolutions. Prints one JSON line a
setting: accuracy on the test split, and that of the digit and of the motion alone.
Run: `python benchmarks/generated_data.py --seeds 3`.

Mean accuracy over seeds 0, 1, 2 (15 epochs, one thread of a shared 2-core machine, torch 2.13 CPU, 2026-11-21):

    frames × side   8 × 32   4 × 32   2 × 32   1 × 32   8 × 16   8 × 8
    class           .948     .707     .392     .138     .805     .437
    digit           .948     .939     .780     .581     .805     .440
    motion          1.00     .751     .500     .244     1.00     .991
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_kd.data import ClipLoader, GeneratedConfig, GeneratedDataset, normalize

SETTINGS = ((8, 32), (4, 32), (2, 32), (1, 32), (8, 16), (8, 8))  # frames, side


class SmallNet(nn.Sequential):
    """Three (2+1)-D blocks, global average, one linear layer."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        channels = (3, width, 2 * width, 4 * width)
        blocks: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(channels):
            blocks += [
                nn.Conv3d(fan_in, fan_out, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
                nn.BatchNorm3d(fan_out),
                nn.ReLU(),
                nn.Conv3d(fan_out, fan_out, (3, 1, 1), 1, (1, 0, 0), bias=False),
                nn.BatchNorm3d(fan_out),
                nn.ReLU(),
            ]
        super().__init__(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))


def view(clip: Tensor, frames: int, side: int) -> Tensor:
    """[B, 3, T, H, W] bytes to what a student with fewer frames and pixels sees."""
    step = clip.shape[2] // frames
    x = normalize(clip[:, :, step // 2 :: step], (0.3,) * 3, (0.25,) * 3)
    return F.adaptive_avg_pool3d(x, (frames, side, side))


def train_and_test(config: GeneratedConfig, frames: int, side: int, epochs: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    train, test = GeneratedDataset(config, "train"), GeneratedDataset(config, "test")
    net = SmallNet(config.info.num_classes)
    loader = ClipLoader(train, 32, seed=seed, shuffle=True, drop_last=True, keys=("clip", "label"))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * len(loader))
    start = time.perf_counter()
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            loss = F.cross_entropy(net(view(batch["clip"], frames, side)), batch["label"], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    train_s = time.perf_counter() - start
    net.eval()
    labels = test.tensors["label"]
    with torch.no_grad():
        found = torch.cat([net(view(b["clip"], frames, side)).argmax(1) for b in ClipLoader(test, 128).epoch(0)])
    motions = len(config.motions)
    return {
        "accuracy": (found == labels).float().mean().item(),
        "digit": (found // motions == labels // motions).float().mean().item(),
        "motion": (found % motions == labels % motions).float().mean().item(),
        "train_s": train_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = GeneratedConfig()
    start = time.perf_counter()
    count = len(GeneratedDataset(config, "train").tensors["label"])
    speed = count / (time.perf_counter() - start)
    print(json.dumps({"clips_per_s": round(speed), "cores": os.cpu_count(), "torch": torch.__version__}))
    for frames, side in SETTINGS:
        for seed in range(arguments.seeds):
            values = train_and_test(config, frames, side, arguments.epochs, seed)
            rounded = {key: round(value, 3) for key, value in values.items()}
            print(json.dumps({"frames": frames, "side": side, "seed": seed, **rounded}), flush=True)


if __name__ == "__main__":
    main()
