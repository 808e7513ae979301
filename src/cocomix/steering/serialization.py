"""Steering as a small JSON file, to be shared.

{"steering": [{"concept": 123, "do": "amplify", "amount": 4.0, "start": 0}]}
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from cocomix.model.interventions import Intervention, named, word
from cocomix.model.plan import Setting
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import parse_json
from cocomix.utils.settings import validate


class SharedItem(BaseModel):
    """What is done to one concept."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    concept: int = Field(ge=0, description="its number")
    do: str = Field(description="an intervention's name, a key of `INTERVENTIONS`")
    amount: float | None = Field(default=None, description="the number it takes, if it takes one")
    start: int = Field(default=0, ge=0, description="first token at which it acts")

    @model_serializer(mode="wrap")
    def _without_what_it_lacks(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in written(self).items() if value is not None}


class SharedSetting(BaseModel):
    """A setting as it lies in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    steering: list[SharedItem] = Field(description="one item a concept")


def to_items(setting: Setting) -> list[SharedItem]:
    """`setting` as items, for `from_items`."""
    return [
        SharedItem(concept=concept, do=word(type(one)), amount=one.amount, start=one.start)
        for concept, one in setting.items()
    ]


def from_items(items: Sequence[SharedItem]) -> dict[int, Intervention]:
    """The setting that `items` are.

    Raises:
        CocomixError: one names no intervention, gives it a number it cannot use, or names a concept a second time.
    """
    setting: dict[int, Intervention] = {}
    for item in items:
        if item.concept in setting:
            raise CocomixError(f"concept {item.concept} is steered twice in the setting; keep one of the two")
        setting[item.concept] = named(item.do).of(item.amount, item.start)
    return setting


def to_json(setting: Setting) -> str:
    """`setting` as JSON, for `from_json`."""
    return SharedSetting(steering=to_items(setting)).model_dump_json()


def from_json(text: str) -> dict[int, Intervention]:
    """The setting in `text`.

    Raises:
        CocomixError: it is not JSON of this form, or as `from_items`.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise CocomixError(f"the steering setting is not JSON ({error}); copy the whole file") from None
    if not isinstance(raw, dict):
        raise CocomixError('the steering setting is JSON but no object; it must start with {"steering": [')
    return from_items(validate(SharedSetting, raw, "the steering setting").steering)
