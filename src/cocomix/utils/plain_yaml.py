"""YAML as settings have it: plain values, few of them, whatever the text makes of aliases, merges and tags."""

from typing import Any

import yaml

LARGEST = 1 << 20
"""Characters of a text."""
MOST, DEEPEST = 100_000, 100
"""Values in it, each counted as often as an alias repeats it, and how deep they may be nested."""


def plain_yaml(text: str) -> Any:
    """What `text` says; nothing but plain values is ever made from it.

    Raises:
        ValueError: it is no YAML, holds a value that is not what its tag or look says, or is too much: a few hundred
            characters of aliases can stand for billions of values.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _weight(node, {}, 0) > MOST:
                raise ValueError(f"it stands for more than {MOST:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is too deeply nested") from None
    except (yaml.YAMLError, AttributeError, IndexError, KeyError, TypeError, OverflowError) as error:
        # PyYAML meets a date of the 99th month, or an integer of no digits, with whatever error comes of it.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    """Counts brackets as they open: PyYAML looks a thousand ahead, in seconds, before anything is nested."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        super().fetch_flow_collection_start(TokenClass)


def _weight(node: yaml.Node, known: dict[yaml.Node, int], depth: int) -> int:
    """Values that `node` stands for once its aliases are written out; what is being weighed has no weight yet."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if node not in known:
        if isinstance(node, yaml.ScalarNode) and any("\ud800" <= one <= "\udfff" for one in node.value):
            raise ValueError("it holds half a character, which no file can hold")
        known[node] = -1
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for one in below for part in (one if isinstance(one, tuple) else (one,))]
        known[node] = 1 + sum(_weight(part, known, depth + 1) for part in parts)
    if known[node] < 0:
        raise ValueError("a part of it is inside itself")
    return known[node]
