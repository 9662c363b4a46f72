"""The JSON schema of the campaign file, for editors: made of the sections themselves, so that no key is listed twice.

Descriptions come from the docstrings of the sections (`Attributes:`) and of their fields. The schema accepts every file
that the sections accept; rules across keys are left to `nas-kd check`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from nas_kd.config.campaign_file import CampaignConfig
from nas_kd.config.space import SpaceConfig
from nas_kd.data import SOURCES, GeneratedConfig
from nas_kd.objectives import ObjectiveConfig
from nas_kd.search_spaces import SPACES
from nas_kd.tasks import TASKS
from nas_kd.teachers import TEACHERS, TeacherConfig
from nas_kd.trials import SAMPLERS
from nas_kd.trials.knobs import Knob

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OWN = {"pattern": ":", "description": "Your own, as module:name."}
_ATTRIBUTE = re.compile(r"^    (\w+): ", flags=re.M)


def campaign_schema() -> dict[str, Any]:
    """The schema, as JSON values."""
    schema = CampaignConfig.model_json_schema(schema_generator=_WithDocstrings)
    definitions, keys = schema["$defs"], schema["properties"]
    for kind in SOURCES.values():
        if kind is not GeneratedConfig:  # the source where a file names none
            definitions[kind.__name__].setdefault("required", []).append("source")
    keys["task"] = _named(keys["task"], TASKS)
    keys["sampler"]["enum"] = list(SAMPLERS)
    knobs = TypeAdapter(Knob).json_schema(schema_generator=_WithDocstrings)
    definitions |= knobs.pop("$defs")
    keys["knobs"]["additionalProperties"] = knobs
    options = {name: _settings(task.options, definitions) for name, task in TASKS.items()}
    schema["allOf"] = [
        _where("task", name, {"properties": {"task_options": of_task}}) for name, of_task in options.items()
    ]
    objective = definitions[ObjectiveConfig.__name__]
    objective |= {"additionalProperties": False, "patternProperties": {":": {"type": "object"}}}
    space = definitions[SpaceConfig.__name__]
    space["properties"]["name"] = _named(space["properties"]["name"], SPACES)
    space["allOf"] = [
        _where("name", name, _with_name(_settings(entry.settings, definitions), space["properties"]["name"]))
        for name, entry in SPACES.items()
    ]
    teacher = definitions[TeacherConfig.__name__]
    teacher["properties"]["model"] = _named(teacher["properties"]["model"], TEACHERS)
    teacher["allOf"] = [
        _where("model", name, {"properties": {"settings": _settings(entry.settings, definitions)}})
        for name, entry in TEACHERS.items()
    ]
    return {"$schema": DIALECT, **schema, "title": "Campaign file of nas-kd"}


def attributes_of(model: type[BaseModel]) -> dict[str, str]:
    """Key -> what it means, of a section: from its docstring and those of the sections that it extends."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if kind is not BaseModel and issubclass(kind, BaseModel):
            _, *parts = _ATTRIBUTE.split(_docstring(kind)[1])
            found |= {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    described = {name: field.description for name, field in model.model_fields.items() if field.description}
    return {**found, **described}


def summary_of(model: type[BaseModel]) -> str:
    """What a section is: its docstring before `Attributes:`."""
    return _docstring(model)[0]


def _docstring(model: type[BaseModel]) -> tuple[str, str]:
    """The docstring of a class before its list of attributes, and that list."""
    text = inspect.cleandoc(model.__doc__ or "")
    before, _, rest = text.partition("Attributes:\n")
    return " ".join(before.split()), rest.partition("\n\n")[0]


class _WithDocstrings(GenerateJsonSchema):
    """With the meaning of keys from docstrings, and without the titles that pydantic makes of names."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Of one section."""
        made, model = super().model_schema(schema), schema["cls"]
        made.pop("title", None)
        made["description"] = summary_of(model)
        meanings = attributes_of(model)
        for key, value in made.get("properties", {}).items():
            if key in meanings:
                value["description"] = meanings[key]
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Keys need no second name."""
        return False


def _named(key: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """A key that holds one of some names or a `module:name` of the user's."""
    return {**key, "anyOf": [{"enum": list(names)}, _OWN]}


def _where(key: str, name: str, then: Mapping[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": then}


def _with_name(settings: dict[str, Any], name: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "properties": {**settings["properties"], "name": name}}


def _settings(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of settings without keys that must be there, since data and defaults complete them; the sections
    inside are added to `definitions`."""
    made = model.model_json_schema(
        schema_generator=_WithDocstrings,
        ref_template=DEFAULT_REF_TEMPLATE.replace("{model}", f"{model.__name__}.{{model}}"),
    )
    for name, inner in made.pop("$defs", {}).items():
        inner.pop("required", None)
        definitions[f"{model.__name__}.{name}"] = inner
    made.pop("required", None)
    made.setdefault("properties", {})
    return made
