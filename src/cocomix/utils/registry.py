"""A registry: the one list of a kind's classes, from which their names, options and help are read.

A mixer, a predictor, an objective, a label rule, a SAE format or a text source is one class with a `name` and one line
in its kind's list; a class from outside the package is added with the kind's public `register_...` function. Which
options a class takes is what its constructor takes, so nothing else has to be kept in step.
"""

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from cocomix.utils.errors import CocomixError, ConfigError

Kind = TypeVar("Kind", bound=type)


class Registry(Mapping[str, Kind], Generic[Kind]):
    """Classes of one kind by their `name`, in the order they were given.

    Args:
        kind: what they are, as messages say it, e.g. "mixer".
        classes: those of the package; each has a class attribute `name`.
        own: constructor arguments that every class of the kind has, which are no options.
    """

    def __init__(self, kind: str, classes: Iterable[Kind] = (), own: Collection[str] = ()) -> None:
        self.kind, self._own = kind, frozenset(own)
        self._classes: dict[str, Kind] = {}
        for cls in classes:
            self.register(cls)

    def register(self, cls: Kind) -> Kind:
        """Add a class; returns it, so that this serves as a decorator.

        Raises:
            CocomixError: it has no name, or another class has that name.
        """
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name:
            raise CocomixError(f"{cls.__name__} has no `name`; give the class the name settings are to call it by")
        if self._classes.get(name, cls) is not cls:
            raise CocomixError(f"there is a {self.kind} {name!r} already; give {cls.__name__} another name")
        self._classes[name] = cls
        return cls

    def unregister(self, name: str) -> None:
        """Take a class out again."""
        del self._classes[name]

    def __getitem__(self, name: str) -> Kind:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    @property
    def names(self) -> str:
        """All names, for help and messages."""
        return ", ".join(self._classes)

    def choose(self, name: str) -> Kind:
        """The class called `name`.

        Raises:
            ConfigError: there is none; those there are.
        """
        if not isinstance(name, str) or name not in self._classes:  # settings may hold anything
            raise ConfigError(f"there is no {self.kind} {name!r}; choose one of {self.names}")
        return self._classes[name]

    def summary(self, name: str) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self._classes[name]) or "").partition("\n")[0]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """What the class takes beside the arguments all of its kind have."""
        parameters = inspect.signature(self._classes[name]).parameters
        return {key: parameter for key, parameter in parameters.items() if key not in self._own}

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Refuse a name that is not registered, and options that are unknown, missing or of the wrong type.

        Raises:
            ConfigError: with what would fit.
        """
        self.choose(name)
        known, what = self.options(name), f"the {self.kind} {name}"
        for key, value in options.items():
            if key not in known:
                there = f"it takes {', '.join(known)}" if known else "it takes none"
                raise ConfigError(f"{what} has no option {key!r}; {there}")
            _check_value(f"the option {key} of {what}", known[key].annotation, value)
        missing = [key for key, one in known.items() if one.default is one.empty and key not in options]
        if missing:
            raise ConfigError(f"{what} needs the option {missing[0]}; give it")


def _check_value(what: str, annotation: Any, value: Any) -> None:
    """Numbers and choices are checked here; what else a class takes it checks itself."""
    if get_origin(annotation) is Literal and value not in (choices := get_args(annotation)):
        raise ConfigError(f"{what} must be one of {', '.join(map(str, choices))}")
    if annotation is float and (
        not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf")
    ):
        raise ConfigError(f"{what} must be a number, 0 or more")
    if annotation is int and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"{what} must be a whole number above 0")
    if annotation is bool and not isinstance(value, bool):
        raise ConfigError(f"{what} must be true or false")
