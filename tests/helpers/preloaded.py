"""Imports of the fork server (`tests.helpers.forked`): what commands and test programs import while they run.

Nothing here computes: a fork of a process without threads can use all of torch.
"""

import os
from importlib import import_module

MODULES = (
    "pytest",
    "cocomix.cli.app",
    "cocomix.experiments.grid",
    "cocomix.experiments.report",
    "cocomix.explorer.app",
    "cocomix.objectives",
    "cocomix.pipeline.concept_stages",
    "cocomix.pipeline.run",
    "cocomix.pipeline.steering_stages",
    "cocomix.report",
    "torch.distributed.run",
    "torch.distributed.fsdp",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)

# Consoles made during these imports must not take the terminal that pytest may run in for theirs.
kept = os.dup(1), os.dup(2)
nowhere = os.open(os.devnull, os.O_WRONLY)
for stream in (1, 2):
    os.dup2(nowhere, stream)
try:
    for name in MODULES:
        import_module(name)
finally:
    for stream, descriptor in zip((1, 2), kept, strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.close(nowhere)
