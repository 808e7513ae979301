"""Checking the settings of mixers and channels before any is built."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from cocomix.utils.errors import ConfigError


def check_choice(
    kind: str, registry: Mapping[str, type], name: str, options: Mapping[str, Any], own: Collection[str]
) -> None:
    """Refuse a name that is not registered, and options that its class does not take, that do not fit or that lack.

    Args:
        kind: what is chosen, e.g. "mixer".
        own: arguments every such class has, which are no options.

    Raises:
        ConfigError: with what would fit.
    """
    if name not in registry:
        raise ConfigError(f"there is no {kind} {name!r}; choose one of {', '.join(registry)}")
    what = f"the {kind} {name}"
    taken = {key: one for key, one in inspect.signature(registry[name]).parameters.items() if key not in own}
    for key, value in options.items():
        if key not in taken:
            there = f"it takes {', '.join(taken)}" if taken else "it takes none"
            raise ConfigError(f"{what} has no option {key!r}; {there}")
        if taken[key].annotation is float:
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise ConfigError(f"the option {key} of {what} must be a number, 0 or more")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"the option {key} of {what} must be a whole number above 0")
    missing = [key for key, one in taken.items() if one.default is one.empty and key not in options]
    if missing:
        raise ConfigError(f"{what} needs the option {missing[0]}; give it")
