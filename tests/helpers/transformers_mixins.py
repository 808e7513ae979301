"""Transformers' own test mixins, imported from its source distribution (`make setup` unpacks it into build/)."""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.models.auto import modeling_auto

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM, CoCoMixModel
from tools.transformers_tests import source

PACKAGE = "transformers_own_tests"
"""The name under which the folder is imported: `tests` is our own."""
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
"""What the mixins import and the source distribution leaves out; an empty class stands in."""


def available() -> bool:
    """Whether the source distribution of the installed version is unpacked."""
    return source().is_dir()


def mixin(module: str, name: str) -> type:
    """A class of the tests' folder."""
    if PACKAGE not in sys.modules:
        _add(PACKAGE, [str(source())])
        for left_out, cls in LEFT_OUT.items():
            _add(f"{PACKAGE}.{left_out.partition('.')[0]}", [])
            setattr(_add(f"{PACKAGE}.{left_out}", None), cls, type(cls, (), {}))
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


def _add(name: str, path: list[str] | None) -> types.ModuleType:
    module = types.ModuleType(name)
    if path is not None:
        module.__path__ = path
    sys.modules[name] = module
    return module


@contextmanager
def known_by_name() -> Iterator[None]:
    """A context in which the mixins find our classes by name, as they find Transformers' own."""
    tables: list[tuple[Any, str]] = [
        (modeling_auto.MODEL_MAPPING_NAMES, "CoCoMixModel"),
        (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "CoCoMixForCausalLM"),
    ]
    for names, cls in tables:
        names["cocomix"] = cls
    try:
        yield
    finally:
        for names, _ in tables:
            names.pop("cocomix", None)


class CoCoMixTester:
    """A tiny model and batch, as the mixins ask for them.

    Args:
        changes: fields of the config.
    """

    causal_lm_class = CoCoMixForCausalLM
    base_model_class = CoCoMixModel
    batch_size, seq_length, is_training = 4, 7, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def get_config(self) -> CoCoMixConfig:
        """The config."""
        return CoCoMixConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=64,
            concept_layer=1,
            num_concepts=40,
            concept_top_k=4,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **self.changes,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[CoCoMixConfig, dict[str, torch.Tensor]]:
        """Config and batch."""
        ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def prepare_config_and_inputs_for_model_class(
        self, model_class: type
    ) -> tuple[CoCoMixConfig, dict[str, torch.Tensor]]:
        """Config and batch for one class."""
        return self.prepare_config_and_inputs_for_common()
