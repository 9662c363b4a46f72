"""An ONNX graph that reads the bytes of clips and gives scores: what comes before and after the net is part of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nas_kd.deploy.answers import has_maps, scores_of
from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.onnx_graph import first_output, largest_difference, write_graph
from nas_kd.deploy.record import BATCHES, Parity, need_onnx

FILE_NAME = "student_uint8.onnx"


class Preprocessed(nn.Module):
    """Bytes (N, 3, T, H, W), of a student of single frames (N, 3, H, W) -> scores (N, C), or maps as the student's.

    Args:
        student: in evaluation mode.
        info: of its bundle.

    Raises:
        ValueError: the bundle does not state all that comes before the net, or the student keeps a state.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, student: nn.Module, info: BundleInfo) -> None:
        super().__init__()
        if info.mean is None or info.std is None:
            raise ValueError("frame features are read as they are: there is no preprocessing to put into a graph")
        if info.input_type.students_keep_a_state or (info.view is None and info.input_type.students_fit_items):
            raise ValueError(
                "preprocessing is put into the graph of a student without a state whose bundle states its view; leave "
                "out with_preprocessing, and prepare frames as arch.json says"
            )
        self.student, self.info = student, info
        single = info.input_type.reads == "frames"
        shape = (3, 1, 1) if single else (3, 1, 1, 1)
        mean, std = (torch.tensor(values).reshape(shape) for values in (info.mean, info.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", -mean / std)
        frames = () if single else (info.source_frames,)
        self.shape = (3, *frames, *info.source_size)

    def forward(self, clips: Tensor) -> Tensor:
        """Scores, or maps."""
        read = clips.float() * self.scale + self.offset
        outputs: Tensor = self.student(read if self.info.view is None else self.info.view.of(read))
        return outputs if has_maps(self.info) else scores_of(outputs, self.info)


def write_preprocessed(student: nn.Module, info: BundleInfo, folder: Path, seed: int) -> Parity:
    """Write the graph, read it again and compare it with the student on random bytes.

    Args:
        student: in evaluation mode.
        info: of its bundle.
        folder: gets `student_uint8.onnx`, with a dynamic batch: input `clips`, output `scores` or `maps`.
        seed: of the bytes.

    Raises:
        ValueError: as by `Preprocessed`.
        ExportError: an output differs, or a package is missing; the file is removed.
    """
    module, path = Preprocessed(student, info).eval(), folder / FILE_NAME
    need_onnx()
    example = torch.zeros(2, *module.shape, dtype=torch.uint8)
    write_graph(module, (example,), path, ["clips"], ["maps" if has_maps(info) else "scores"])
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randint(0, 256, (n, *module.shape), dtype=torch.uint8, generator=generator) for n in BATCHES]
    with torch.no_grad():
        outputs = [student(info.prepare(batch)) for batch in clips]
    expected = outputs if has_maps(info) else [scores_of(each, info) for each in outputs]
    return Parity.of(path, *largest_difference(first_output(path), clips, expected))
