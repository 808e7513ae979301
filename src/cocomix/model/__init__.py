"""The CoCoMix student on the Transformers API."""

from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.model.backbones import BACKBONES
from cocomix.model.channel import Channel
from cocomix.model.channels import CHANNELS
from cocomix.model.concept_head import ConceptHead, ConceptPrediction
from cocomix.model.config import CoCoMixConfig
from cocomix.model.loss import concept_loss
from cocomix.model.mixers import MIXERS, Mixer
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.model.output import CoCoMixOutput

AutoConfig.register("cocomix", CoCoMixConfig, exist_ok=True)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM, exist_ok=True)

__all__ = [
    "BACKBONES",
    "CHANNELS",
    "MIXERS",
    "Channel",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixOutput",
    "ConceptHead",
    "ConceptPrediction",
    "Mixer",
    "concept_loss",
]
