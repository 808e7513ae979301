"""The web explorer: a server on this machine and its page."""
