"""Transformers' own model tests (ModelTesterMixin, TrainingTesterMixin), run against ours.

A quick selection in `make test`; all of them with `python -m tools.transformers_tests`, which also writes the table in
docs/explanation/transformers.md. A test that cannot pass is listed below with its reason, and must fail: if it passes,
the reason is stale and the suite says so.
"""

import os
import unittest
from collections.abc import Iterator
from typing import Any

import pytest

from cocomix.model import CoCoMixForCausalLM, CoCoMixModel
from tests.helpers.transformers_mixins import CoCoMixTester, available, known_by_name, mixin
from tools.transformers_tests import EVERY

pytestmark = pytest.mark.skipif(
    not available(), reason="Transformers' own tests are not in build/: python -m tools.transformers_tests --fetch"
)

EXPECTED_TO_FAIL = {
    "test_generation_tester_mixin_inheritance": "the source distribution leaves GenerationTesterMixin out;"
    " tests/model/test_generation.py instead",
}
TIED = {
    "test_correct_missing_keys": "no key is missing: the base model is saved under the same names as the whole, and the"
    " tied LM head is its embedding",
}
QUICK = {
    "test_attention_outputs",
    "test_batching_equivalence",
    "test_can_be_initialized_on_meta",
    "test_can_init_all_missing_weights",
    "test_causal_lm_loss_honors_shift_labels",
    "test_correct_missing_keys",
    "test_determinism",
    "test_enable_input_require_grads",
    "test_generation_tester_mixin_inheritance",
    "test_hidden_states_output",
    "test_inputs_embeds",
    "test_inputs_embeds_matches_input_ids",
    "test_load_save_without_tied_weights",
    "test_model_base_model_prefix",
    "test_model_get_set_embeddings",
    "test_model_main_input_name",
    "test_peft_gradient_checkpointing_enable_disable",
    "test_resize_embeddings_untied",
    "test_resize_tokens_embeddings",
    "test_retain_grad_hidden_states_attentions",
    "test_save_load",
    "test_tied_weights_keys",
    "test_torch_save_load",
    "test_training",
    "test_training_gradient_checkpointing",
}


@pytest.fixture(autouse=True)
def _names() -> Iterator[None]:
    with known_by_name():
        yield


def _case(name: str, expected_to_fail: dict[str, str], **changes: Any) -> type:
    """A test case with the mixins' tests, for a model with these changes to its config."""
    if not available():
        return type(name, (), {"test_mixins": lambda self: None})

    def set_up(self: Any) -> None:
        self.model_tester = CoCoMixTester(**changes)

    bases = (
        mixin("test_modeling_common", "ModelTesterMixin"),
        mixin("test_training_mixin", "TrainingTesterMixin"),
        unittest.TestCase,
    )
    fields = {
        "all_model_classes": (CoCoMixModel, CoCoMixForCausalLM),
        "test_can_init_all_missing_weights_before_2023": True,
        "setUp": set_up,
    }
    case: Any = type(name, bases, fields)
    for test in [each for each in dir(case) if each.startswith("test_") and callable(getattr(case, each))]:
        if test not in QUICK and EVERY not in os.environ:
            setattr(case, test, None)
        elif test in expected_to_fail:
            mark = pytest.mark.xfail(reason=expected_to_fail[test], strict=True)
            setattr(case, test, mark(_own(getattr(case, test))))
    return case


def _own(test: Any) -> Any:
    """A copy to mark: the mixin's function is shared by all cases."""

    def run(self: Any) -> None:
        test(self)

    return run


TestOneSlot = _case("TestOneSlot", EXPECTED_TO_FAIL, backbone="gpt2", mixer="add", tie_word_embeddings=False)
TestInterleaved = _case("TestInterleaved", EXPECTED_TO_FAIL | TIED, backbone="llama", num_key_value_heads=2)
