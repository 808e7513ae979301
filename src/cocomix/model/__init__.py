"""The CoCoMix student and the concept model, on the Transformers API."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cocomix.model.build import (
    MixConfig,
    ModelShape,
    Sizes,
    build_mixed,
    build_plain,
    match_width,
    parameter_count,
    special_ids,
)
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.flops import model_flops, sae_training_flops
from cocomix.model.forced_concepts import concepts_forced
from cocomix.model.interventions import (
    INTERVENTIONS,
    Ablate,
    Amplify,
    Clamp,
    Dampen,
    Intervention,
    Setting,
    Steering,
    concept_head,
    steered,
)
from cocomix.model.loading import load_causal_lm, model_config
from cocomix.model.mixers import MIXERS, Mixer, register_mixer
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM, CoCoMixModel, CoCoMixOutput, concept_loss
from cocomix.model.predictors import (
    PREDICTORS,
    ConceptHead,
    ConceptPrediction,
    Predictor,
    register_predictor,
)
from cocomix.model.teacher import hidden_at
from cocomix.model.transformer import BACKBONES, Backbone, register_backbone
from cocomix.model.vector_replacements import (
    REPLACEMENTS,
    MeanVector,
    ShuffledVector,
    VectorReplacement,
    ZeroVector,
    mean_vector,
    mixes_vector,
    vector_replaced,
)

AutoConfig.register("cocomix", CoCoMixConfig, exist_ok=True)
AutoModel.register(CoCoMixConfig, CoCoMixModel, exist_ok=True)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM, exist_ok=True)

__all__ = [
    "BACKBONES",
    "INTERVENTIONS",
    "MIXERS",
    "PREDICTORS",
    "REPLACEMENTS",
    "Ablate",
    "Amplify",
    "Backbone",
    "Clamp",
    "CoCoMixConfig",
    "CoCoMixForCausalLM",
    "CoCoMixModel",
    "CoCoMixOutput",
    "ConceptHead",
    "ConceptPrediction",
    "Dampen",
    "Intervention",
    "MeanVector",
    "MixConfig",
    "Mixer",
    "ModelShape",
    "Predictor",
    "Setting",
    "ShuffledVector",
    "Sizes",
    "Steering",
    "VectorReplacement",
    "ZeroVector",
    "build_mixed",
    "build_plain",
    "concept_head",
    "concept_loss",
    "concepts_forced",
    "hidden_at",
    "load_causal_lm",
    "match_width",
    "mean_vector",
    "mixes_vector",
    "model_config",
    "model_flops",
    "parameter_count",
    "register_backbone",
    "register_mixer",
    "register_predictor",
    "sae_training_flops",
    "special_ids",
    "steered",
    "vector_replaced",
]
