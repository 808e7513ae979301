"""Checking the settings of mixers and channels before any is built."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from cocomix.errors import ConfigError


def check_options(what: str, kind: type, options: Mapping[str, Any], own: Collection[str]) -> None:
    """Refuse options that are not keyword arguments of `kind`, values that do not fit, and missing ones.

    Args:
        what: what it is to the user, e.g. "the mixer every".
        own: arguments every such class has, which are no options.

    Raises:
        ConfigError: with what would fit.
    """
    taken = {name: one for name, one in inspect.signature(kind).parameters.items() if name not in own}
    for name, value in options.items():
        if name not in taken:
            there = f"it takes {', '.join(taken)}" if taken else "it takes none"
            raise ConfigError(f"{what} has no option {name!r}; {there}")
        if taken[name].annotation is float:
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise ConfigError(f"the option {name} of {what} must be a number, 0 or more")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"the option {name} of {what} must be a whole number above 0")
    missing = [name for name, one in taken.items() if one.default is one.empty and name not in options]
    if missing:
        raise ConfigError(f"{what} needs the option {missing[0]}; give it")
