"""Names of classes as YAML reads them."""

from __future__ import annotations

import pytest
import torch
import yaml

from nas_kd.config import ConfigError, validate
from nas_kd.data import FolderConfig
from nas_kd.data.sequences import SequencesConfig
from nas_kd.tasks.class_weights import CrossEntropyConfig, given_weights
from nas_kd.teachers.teacher import TeacherConfig


def test_numbers_are_names_wherever_classes_are_named() -> None:
    assert FolderConfig.model_validate(yaml.safe_load("{root: a, classes: [2, 1.5, x]}")).classes == ("2", "1.5", "x")
    assert SequencesConfig.model_validate(yaml.safe_load("{root: a, classes: [2, 1.5]}")).classes == ("2", "1.5")
    outputs = TeacherConfig.model_validate(yaml.safe_load("{outputs: {0: 1, 10: 0}}")).outputs
    assert outputs == {"0": 1, "10": 0}
    assert TeacherConfig.model_validate({"outputs": [1, 0]}).outputs == (1, 0)
    weights = CrossEntropyConfig.model_validate(yaml.safe_load("{class_weights: {10: 5}}")).class_weights
    assert torch.equal(given_weights(weights, ("0", "10")), torch.tensor([1.0, 5.0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("data: {source: folder, root: a, classes: [no, yes]}", "data.classes"),
        ("data: {source: sequences, root: a, classes: [off, on]}\ntask: segmentation", "data.classes"),
        ("teacher: {outputs: {no: 1, yes: 0}}", "teacher.outputs"),
        ("task_options: {class_weights: {no: 1, yes: 5}}", "task_options: class_weights"),
        ("data: {source: folder, root: a, classes: [a, ~]}", "data.classes"),
    ],
)
def test_what_yaml_makes_no_text_of_is_one_sentence(text: str, start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(yaml.safe_load(text), source="test")
    sentence = str(caught.value)
    assert sentence.startswith(f"test: {start}: names of classes must be text, but YAML reads ")
    assert sentence.endswith("put names in quotes")
    assert "\n" not in sentence


def test_a_value_that_fits_no_form_of_a_key_is_one_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"data": {"source": "folder", "root": "a", "size": "big"}}, source="test")
    rule = "input should be a valid integer, unable to parse string as an integer, or must be a list"
    assert str(caught.value) == f"test: data.size: {rule}, but got 'big'"
    with pytest.raises(ConfigError) as caught:
        validate({"teacher": {"outputs": [0, "b"]}}, source="test")
    assert str(caught.value).startswith("test: teacher.outputs.1: input should be a valid integer")
    assert "\n" not in str(caught.value)
