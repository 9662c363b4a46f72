"""A bundle that fits itself, hashes and all, but cannot be that of a student is refused before anything is run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nas_kd
from nas_kd.config import CampaignConfig
from nas_kd.data.label_form import LabelImages
from nas_kd.deploy.bundle import digest_of, read_info
from nas_kd.deploy.claims import MAX_ARCH_BYTES
from nas_kd.deploy.labelled_folder import labelled_folder
from nas_kd.deploy.pt2_archive import check_graph
from tests.nas_kd.test_deploy import bundle

NAN = float("nan")
IMAGES = {"form": "images", "values": ["a", "b"]}
CLAIMS: list[tuple[str, Any, str]] = [
    ("source_frames", 0, "source_frames is 0, but it is at least 1"),
    ("source_frames", 10**9, "a clip has at most"),
    ("source_size", [10**6, 10**6], "a clip has at most"),
    ("source_size", [-1, 16], "its sizes are at least 1"),
    ("input_shape", [3, 4, 10**6, 10**6], "an input has at most"),
    ("input_shape", [3, -4, 16, 16], "its sizes are at least 1"),
    ("input_shape", [2, 4, 16, 16], "reads three channels"),
    ("mean", [NAN, NAN, NAN], "mean is .*nan.* but it is finite"),
    ("mean", None, "mean and std are given together"),
    ("std", [0.0, 0.0, 0.0], "it is above 0"),
    ("std", None, "mean and std are given together"),
    ("keyframe_interval", 0, "it is at least 1"),
    ("keyframe_interval", 3, "states keyframe_interval 3, but that of its architecture is None"),
    ("class_names", ["a", "b", "c"], "gives 4 scores, but arch.json names 3 classes"),
    ("class_names", ["a", "b", "c", "a"], "each class has a name of its own"),
    ("class_names", ["a", "b", "c", "\x1b[2J"], "no control characters"),
    ("task", "nothing", "tasks are classification"),
    ("view", {"frames": [0, 1, 2, 99], "size": [16, 16]}, r"below source_frames \(4\)"),
    ("view", {"frames": [0, 1] * 10**5, "size": [16, 16]}, r"as many frames as the input has \(4\)"),
    ("view", {"frames": [0, 1, 2, 3], "size": [10**6, 10**6]}, "view.size .* that of the input"),
    ("decoding", {"stored": [0, 0, 0]}, "at least 4 frames of 16 × 16"),
    ("decoding", {"stored": [10**9, 20, 20]}, "at most .* bytes"),
    ("params", -1, "no negative number"),
    ("labels", {"form": "images"}, "labels.values: missing; give it a value; take the bundle from its trial again"),
    ("labels", {"form": "other"}, "labels.form: 'other' is unknown; choose from classes, images"),
    ("labels", {}, "labels.form: missing"),
    ("labels", {"form": "classes", "group": "\x1b[2J"}, "labels.group is .* no control characters"),
    ("labels", {**IMAGES, "kind": 1}, "labels.kind: unknown key 'kind'; choose from form, values, ignore"),
    ("labels", {**IMAGES, "values": ["a", "\n"]}, "labels.values is .* no control characters"),
    ("labels", {**IMAGES, "order": "\n"}, "labels.order is .* no control characters"),
    ("labels", {**IMAGES, "ignore": [2**31]}, "labels.ignore is .*2147483648.* at most 65,536 values of 32 bits"),
    ("labels", {**IMAGES, "ignore": [9] * (2**16 + 1)}, "labels.ignore is .*9….* at most 65,536 values of 32 bits"),
    (
        "labels",
        {**IMAGES, "camera": {"clips_per_image": 1001}},
        "labels.camera.clips_per_image: input should be less than or equal to 1000, but got 1001; take the bundle",
    ),
]
LABELS: list[tuple[str, Any, str]] = [  # what only shows where the labels are read, as no data section could say it
    (
        "segmentation",
        {"values": ("a", "a")},
        r"as data of source sequences, classes must be names that differ, but 'a' is listed 2 times; take",
    ),
    ("segmentation", {"values": tuple("abc"), "binary": True}, "classes must name background and object where labels"),
    ("segmentation", {"points": True, "camera": {"splits": ["test"]}}, "points belong to frames as they are"),
    ("detection", {"points": True, "min_box_pixels": 9}, "boxes are tight around objects"),
    ("classification", {}, "labels.form is 'images', but that of classification is 'classes'; take the bundle from"),
]


def test_entries_that_cannot_be_true_are_refused(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    space = tiny(space={"resolution": [16]}).space.build(4)
    bundle(tmp_path, space)
    image = tmp_path / "image.png"

    Image.new("RGB", (16, 16)).save(image)
    file = tmp_path / "arch.json"
    content, info = json.loads(file.read_text()), read_info(tmp_path)
    assert len(nas_kd.load(tmp_path).classify(image).labels) == 4
    for entry, value, sentence in CLAIMS:
        changed = {**content, entry: value}
        file.write_text(json.dumps({**changed, "digest": digest_of(changed)}))
        with pytest.raises(ValueError, match=sentence) as caught:
            nas_kd.load(tmp_path).classify(image)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for task, change, sentence in LABELS:
        labels = LabelImages.model_validate({**IMAGES, **change})
        with pytest.raises(ValueError, match=rf"arch\.json cannot be that of a student: .*{sentence}") as caught:
            labelled_folder(tmp_path, None, info.model_copy(update={"task": task, "labels": labels}))
        assert "\n" not in str(caught.value)
    file.write_text("[" * 10**5)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_info(tmp_path)
    with file.open("wb") as large:
        large.truncate(MAX_ARCH_BYTES + 1)
    with pytest.raises(ValueError, match="has 33,554,433 bytes, but that of a student has at most"):
        read_info(tmp_path)


def test_a_graph_is_not_larger_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "student.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("student/data/weights/weight_0", bytes(10**6))
    with pytest.raises(ValueError, match="holds 'data/weights/weight_0' compressed, as torch does not"):
        check_graph(path)
