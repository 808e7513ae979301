"""Steering as text: a small JSON file to be shared, and one line for the command line.

The file is `{"steering": [{"concept": 123, "do": "amplify", "amount": 4.0, "start": 0}]}`, the line
`c123=+4,c7:off,c9=clamp:2@10`. Items of a line are separated by commas. Each is a concept, `=` or `:`, what is done to
it, and optionally `@` with the first token at which it acts:

    +4, -2        amplify (or amplify:4)
    off           ablate (or ablate)
    clamp:2       clamp
    dampen:0.5    dampen

A concept is `c` and its number, or a name where the caller can resolve names.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from cocomix.model.interventions import INTERVENTIONS, Ablate, Amplify, Intervention, Setting
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
    """A setting as the file holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    steering: list[SharedItem] = Field(description="one item a concept")


def to_items(setting: Setting) -> list[SharedItem]:
    """`setting` as items, for `from_items`."""
    return [
        SharedItem(concept=concept, do=action.name, amount=action.amount, start=action.start)
        for concept, action in setting.items()
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
        setting[item.concept] = INTERVENTIONS.choose(item.do).from_amount(item.amount, item.start)
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


_ITEM = re.compile(r"(?P<concept>[^=:@]+)[=:](?P<action>[^@]+)(?:@(?P<start>[^@]*))?")
_NUMBER = re.compile(r"c([0-9]+)")
_FORM = "write items such as c123=+4, c7:off or c9=clamp:2@10, separated by commas"


def parse_steering(text: str, resolve: Callable[[str], int] | None = None) -> dict[int, Intervention]:
    """The setting that `text` names; an empty text steers nothing.

    Args:
        text: as in this module's docstring.
        resolve: gives the number of a concept named in the text, and raises for a name it does not know.

    Raises:
        CocomixError: what cannot be read, or a concept named twice.
    """
    setting: dict[int, Intervention] = {}
    for item in text.split(",") if text.strip() else []:
        parts = _ITEM.fullmatch(item.strip())
        if parts is None:
            raise CocomixError(f"the steering item {item.strip()!r} cannot be read; {_FORM}")
        concept = _concept(parts["concept"].strip(), resolve)
        if concept in setting:
            raise CocomixError(f"concept {concept} is steered twice in {text!r}; keep one of the two")
        setting[concept] = _action(parts["action"].strip(), _start(parts["start"], item))
    return setting


def format_steering(setting: Setting) -> str:
    """The line that `parse_steering` reads as `setting`."""
    return ",".join(f"c{concept}{_action_text(action)}" for concept, action in setting.items())


def _concept(name: str, resolve: Callable[[str], int] | None) -> int:
    number = _NUMBER.fullmatch(name)
    if number is not None:
        return _whole(number[1])
    if resolve is None:
        raise CocomixError(f"there is no concept named {name!r} here; give its number, such as c123")
    return resolve(name)


def _start(start: str | None, item: str) -> int:
    if start is None:
        return 0
    if not re.fullmatch(r"\s*[0-9]+\s*", start):
        raise CocomixError(
            f"the steering item {item.strip()!r} does not say from which token on; write a whole number after @, such"
            " as @10"
        )
    return _whole(start)


def _action(action: str, start: int) -> Intervention:
    if action == "off":
        return Ablate(start=start)
    if action[0] in "+-":
        return Amplify(_float(action), start=start)
    name, separator, amount = action.partition(":")
    return INTERVENTIONS.choose(name.strip()).from_amount(_float(amount) if separator else None, start)


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python reads no more than a few thousand digits
        raise CocomixError(
            f"the number {digits.strip()[:8]}... is too long; give a concept or a token there is"
        ) from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CocomixError(f"{text.strip()!r} is no number; {_FORM}") from None


def _action_text(intervention: Intervention) -> str:
    at = f"@{intervention.start}" if intervention.start else ""
    amount = intervention.amount
    if isinstance(intervention, Ablate):
        return f":off{at}"
    number = "" if amount is None else repr(float(amount)).removesuffix(".0")
    if isinstance(intervention, Amplify):
        return f"={number if number.startswith('-') else '+' + number}{at}"
    return f"={intervention.name}{':' if number else ''}{number}{at}"
