"""Who this process is among those of a launch, read from what torchrun sets, without loading torch."""

import os
import time


def rank() -> int:
    """This process's number, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes take part, 1 alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def wait_for_main_to_say_it() -> None:
    """Give the main process time to report an error that all have; a launcher then ends the others unheard."""
    if not is_main():
        time.sleep(3)
