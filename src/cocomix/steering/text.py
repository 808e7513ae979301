"""Steering as one line of text, `c123=+4,c7:off,c9=clamp:2@10`, and back.

Items are separated by commas. Each is a concept, `=` or `:`, what is done to it, and perhaps `@` with the token from
which on:

    +4, -2        amplify (or amplify:4)
    off           ablate (or ablate)
    clamp:2       clamp
    dampen:0.5    dampen

A concept is `c` and its number, or a name where the caller can resolve names.
"""

import re
from collections.abc import Callable

from cocomix.model.interventions import Ablate, Amplify, Intervention, named, word
from cocomix.model.plan import Setting
from cocomix.utils.errors import CocomixError

_ITEM = re.compile(r"(?P<concept>[^=:@]+)[=:](?P<action>[^@]+)(?:@(?P<start>[^@]*))?")
_NUMBER = re.compile(r"c([0-9]+)")
_FORM = "write items such as c123=+4, c7:off or c9=clamp:2@10, separated by commas"


def parse_steering(text: str, resolve: Callable[[str], int] | None = None) -> dict[int, Intervention]:
    """The setting that `text` names; nothing is steered by an empty one.

    Args:
        text: as in this module's docstring.
        resolve: the number of a concept given by name; it says itself what is wrong with a name it does not know.

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
    return ",".join(f"c{concept}{_action_text(one)}" for concept, one in setting.items())


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
    return named(name.strip()).of(_float(amount) if separator else None, start)


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
    return f"={word(type(intervention))}{':' if number else ''}{number}{at}"
