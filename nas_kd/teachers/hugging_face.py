"""Video models of Hugging Face transformers, from a folder with `config.json` and safetensors weights.

Nothing is downloaded, no code of the folder runs, and weights are read from safetensors alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict
from torch import nn

from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.teachers.layouts import Layout

_SIZES = ("image_size", "crop_size")  # names in the configs of transformers
_FRAMES = ("num_frames", "frames_per_clip")
_PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
_NESTED = ("video_processor", "image_processor")  # sections of the last one


class HuggingFaceSettings(BaseModel):
    """Settings of the teacher.

    Attributes:
        folder: with `config.json`, and `model.safetensors` where it is trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path


@dataclass(frozen=True)
class Wanted:
    """What a model of a folder wants of its input.

    Attributes:
        layout: of clips.
        size: (H, W); None for any.
        frames: None for any.
        normalize: of its preprocessor; None where the folder has none.
        source: the file that says so, or that there is none, for sentences.
    """

    layout: Layout
    size: tuple[int, int] | None
    frames: int | None
    normalize: NormalizeConfig | None
    source: str


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"teacher.settings.folder: {path} cannot be read as JSON; give the folder that save_pretrained wrote"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"teacher.settings.folder: {path} must hold an object, but holds a {type(content).__name__}")
    return content


def has_weights(settings: Mapping[str, Any]) -> bool:
    """Whether the folder of these settings has weights."""
    folder = Path(str(settings.get("folder", "")))
    return any(folder.glob("*.safetensors"))


def files(settings: Mapping[str, Any]) -> list[Path]:
    """The files of the folder that decide what the model computes."""
    folder = Path(str(settings.get("folder", "")))
    configs = [path for name in ("config.json", *_PREPROCESSORS) if (path := folder / name).is_file()]
    return [*configs, *sorted(folder.glob("*.safetensors"))]


def build_hugging_face(num_outputs: int, settings: Mapping[str, Any]) -> nn.Module:
    """The model of the folder, with its weights where it has some.

    Without weights it gets `num_outputs` classes; with weights it keeps those of the folder.

    Raises:
        ValidationError: settings that do not exist.
        ValueError: transformers is not installed, or the folder holds no video model that it knows.
    """
    folder = HuggingFaceSettings.model_validate(settings).folder
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "teacher.model: hugging_face needs transformers, which is not installed: pip install 'nas-kd[transformers]'"
        ) from error
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"teacher.settings.folder: there is no config.json in {folder}; give the folder that save_pretrained wrote"
        )
    loader = _loader(transformers, str(_read(folder / "config.json").get("model_type")), folder)
    messages: Any = transformers.utils.logging
    verbosity, shows_bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity(logging.ERROR)
    messages.disable_progress_bar()
    try:
        if has_weights(settings):
            model, report = loader.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            if missing := sorted(report["missing_keys"]):
                raise ValueError(
                    f"teacher.settings.folder: the weights of {folder} lack {', '.join(missing[:3])}"
                    f"{', …' if len(missing) > 3 else ''}; give a model that was saved with its classifier"
                )
        else:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config.num_labels = num_outputs
            model = loader.from_config(config)
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"teacher.settings.folder: transformers cannot load {folder}: {reason}") from error
    finally:
        messages.set_verbosity(verbosity)
        if shows_bars:
            messages.enable_progress_bar()
    return cast(nn.Module, model)


def _loader(transformers: Any, kind: str, folder: Path) -> Any:
    """The class that loads models of this type: of clips, or else of images."""
    auto = transformers.models.auto.modeling_auto
    if kind in auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES:
        return transformers.AutoModelForVideoClassification
    if kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return transformers.AutoModelForImageClassification
    known = ", ".join(sorted(auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES))
    raise ValueError(
        f"teacher.settings.folder: {folder} holds a model of type {kind!r}, which classifies no clips; choose one of "
        f"{known}, or wrap it in a function of your own"
    )


def _preprocessor(folder: Path) -> tuple[dict[str, Any], str]:
    """What a folder says about the preprocessing of its model, and in which file; nothing where it does not."""
    for name in _PREPROCESSORS:
        if (folder / name).is_file():
            content = _read(folder / name)
            nested = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
            if "image_mean" in nested or "do_normalize" in nested:
                return nested, name
    return {}, ""


def _normalization(content: Mapping[str, Any]) -> NormalizeConfig | None:
    """What a preprocessor makes of a byte b: (b · rescale_factor − offset − image_mean) / image_std."""
    normalizes = content.get("do_normalize", True)
    if normalizes and not ("image_mean" in content and "image_std" in content):
        return None
    means, stds = (content["image_mean"], content["image_std"]) if normalizes else ((0, 0, 0), (1, 1, 1))
    scale = 255 * float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 255.0
    offset = 1.0 if content.get("offset") else 0.0
    mean = tuple((offset + float(value)) / scale for value in means)
    std = tuple(float(value) / scale for value in stds)
    return NormalizeConfig.model_validate({"mean": mean, "std": std})


def wanted(settings: Mapping[str, Any], model: nn.Module) -> Wanted:
    """What the model of the folder wants.

    Args:
        settings: as in the campaign file.
        model: of the folder.
    """
    config, folder = cast(Any, model).config, Path(str(settings["folder"]))
    is_video = "ForVideoClassification" in type(model).__name__
    side = next((getattr(config, name) for name in _SIZES if getattr(config, name, None)), None)
    size = (side, side) if isinstance(side, int) else (tuple(side) if side else None)
    frames = next((getattr(config, name) for name in _FRAMES if getattr(config, name, None)), None)
    content, source = _preprocessor(folder)
    normalize = _normalization(content)
    return Wanted(
        "NTCHW" if is_video else "frames",
        cast(tuple[int, int], size),
        frames if is_video else None,
        normalize,
        source if normalize is not None and source else f"no {_PREPROCESSORS[0]} or {_PREPROCESSORS[1]}",
    )
