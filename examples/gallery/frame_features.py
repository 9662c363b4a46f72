"""Sequences of frame features with several events each, for campaigns that need no data (docs/gallery.md).

An item has one to three of the events. Each event lasts for a part of the item, at a random place, and adds its own
pattern to the features of these frames; noise does the rest. Who sees few frames misses short events.
"""

import numpy as np
import torch
from torch.utils.data import Dataset


class Events(Dataset):
    """One split.

    Args:
        number: of items.
        seed: of this split.
        patterns: one for each event, (events, features).
        frames: of an item.
        noise: standard deviation of the noise of a feature; a pattern has 1.
    """

    def __init__(self, number, seed, patterns, frames, noise):
        rng = np.random.default_rng(seed)
        self.events = np.zeros((number, len(patterns)), np.uint8)
        features = rng.normal(scale=noise, size=(number, frames, patterns.shape[1]))
        for item in range(number):
            for event in rng.choice(len(patterns), rng.integers(1, 4), replace=False):
                length = rng.integers(frames // 8, frames // 2)
                begin = rng.integers(0, frames - length + 1)
                features[item, begin : begin + length] += patterns[event]
                self.events[item, event] = 1
        self.features = torch.from_numpy(features.astype(np.float32))

    def __len__(self):
        return len(self.events)

    def __getitem__(self, index):
        labels = self.events[index]
        return {
            "features": self.features[index],
            "label": torch.tensor(int(labels.argmax())),
            "labels": torch.from_numpy(labels),
        }


def load(events=12, features=64, frames=24, noise=1.5, num_train=1024, num_val=384, num_test=768):
    """What `data: {source: own}` asks for: three splits and the names of the classes."""
    patterns = np.random.default_rng(0).normal(size=(events, features))
    sizes = {"train": num_train, "val": num_val, "test": num_test}
    sets = {
        name: Events(number, seed, patterns, frames, noise)
        for seed, (name, number) in enumerate(sizes.items(), start=1)
    }
    return {**sets, "class_names": [f"event {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:events]]}
