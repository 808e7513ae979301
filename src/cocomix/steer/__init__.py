"""Turn a student's predicted concepts up or down, and measure what that does to generated text."""

from cocomix.steer.intervene import INTERVENTIONS, Amplify, Intervention, Suppress, concept_head, steered
from cocomix.steer.score import Place, Trial, choose_concepts, steering_score, strongest_places

__all__ = [
    "INTERVENTIONS",
    "Amplify",
    "Intervention",
    "Place",
    "Suppress",
    "Trial",
    "choose_concepts",
    "concept_head",
    "steered",
    "steering_score",
    "strongest_places",
]
