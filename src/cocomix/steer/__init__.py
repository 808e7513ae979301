"""Turn concepts up or down while a model runs, and measure what that does to generated text."""

from cocomix.steer.concept_logits import concept_head, steered
from cocomix.steer.intervene import INTERVENTIONS, Ablate, Amplify, Clamp, Dampen, Intervention
from cocomix.steer.plan import Setting, Steering
from cocomix.steer.residual import steer_residual
from cocomix.steer.score import Place, Trial, choose_concepts, steering_score, strongest_places
from cocomix.steer.share import SharedItem, SharedSetting, from_items, from_json, to_items, to_json
from cocomix.steer.text import format_steering, parse_steering

__all__ = [
    "INTERVENTIONS",
    "Ablate",
    "Amplify",
    "Clamp",
    "Dampen",
    "Intervention",
    "Place",
    "Setting",
    "SharedItem",
    "SharedSetting",
    "Steering",
    "Trial",
    "choose_concepts",
    "concept_head",
    "format_steering",
    "from_items",
    "from_json",
    "parse_steering",
    "steer_residual",
    "steered",
    "steering_score",
    "strongest_places",
    "to_items",
    "to_json",
]
