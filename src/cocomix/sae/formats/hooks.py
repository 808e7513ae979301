"""Which block's output a hook point is, in the words of the libraries that train autoencoders."""

import re

from cocomix.utils.errors import CocomixError

AFTER = (re.compile(r"blocks\.(\d+)\.hook_resid_post"), re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)"))
BEFORE = re.compile(r"blocks\.(\d+)\.hook_resid_pre")


def block_before(hook: str) -> int | None:
    """The block (0-based) whose output `hook` is; None if it is something else.

    `blocks.5.hook_resid_post`, `transformer.h.5`, `model.layers.5` and `layers.5` are block 5's output;
    `blocks.5.hook_resid_pre` is block 4's.
    """
    for pattern in AFTER:
        if match := pattern.fullmatch(hook):
            return int(match[1])
    match = BEFORE.fullmatch(hook)
    return int(match[1]) - 1 if match and int(match[1]) else None


def check_hook(hook: str | None, layer: int, source: str) -> None:
    """Refuse an autoencoder that says it reads elsewhere than after block `layer` (0-based).

    Raises:
        CocomixError: it does; one that does not say is let through.
    """
    if hook is None:
        return
    block = block_before(hook)
    if block is None:
        raise CocomixError(
            f"the SAE {source} reads {hook!r}, not a residual stream after a block; use one of a block's output"
        )
    if block != layer:
        raise CocomixError(
            f"the SAE {source} reads {hook!r}, the output of block {block} (0-based), and sae.layer is {layer};"
            f" set sae.layer={block} or choose another SAE"
        )
