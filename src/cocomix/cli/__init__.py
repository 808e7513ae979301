"""The command line: options and calls, one hop to the feature."""

from cocomix.cli.app import main

__all__ = [
    "main",
]
