"""Look into a graph of torch before it is loaded: `torch.export.load` unpickles some of what it may hold."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import torch

_PLAIN = re.compile(
    r"data/(weights|constants)/([^/]*_config\.json|weight_\d+|tensor_\d+)|data/sample_inputs/[^/]*\.pt|"
    r"models/[^/]*\.json|extra/.*|\.data/[a-z_]+|archive_format|archive_version|byteorder|version"
)
"""What a graph without pickled objects consists of."""


def check_graph(path: Path) -> None:
    """Raise where a `.pt2` is damaged or holds what only unpickling could load.

    Raises:
        ValueError: the reason.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename
                inner = name.partition("/")[2]  # below the folder that every archive of torch has
                if entry.compress_type != zipfile.ZIP_STORED:  # so that nothing is larger than the file is
                    raise ValueError(f"{path} holds {inner!r} compressed, as torch does not; export the bundle again")
                if _PLAIN.fullmatch(inner) is None or not _is_plain(inner, archive.read(name)):
                    raise ValueError(
                        f"{path} holds {inner!r}, which could run code when it is loaded; graphs that nas_kd exports "
                        "hold tensors alone, so export the bundle again"
                    )
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is no graph of torch, or it was cut short: {error}; export the bundle again"
        ) from error


def _is_plain(name: str, content: bytes) -> bool:
    if name.startswith("data/") and name.endswith(".json"):
        entries = json.loads(content).get("config", {})
        return not any(entry.get("use_pickle") for entry in entries.values())
    if name.startswith("data/sample_inputs/"):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception:  # whatever it is, it is not tensors alone
            return False
    return True
