"""Where a run talks to its user."""

from rich.console import Console

console = Console()
errors = Console(stderr=True)
