"""Changing concepts while a model runs, and measuring whether that works."""

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
from cocomix.steering.residual import steer_residual
from cocomix.steering.serialization import (
    SharedItem,
    SharedSetting,
    format_steering,
    from_items,
    from_json,
    parse_steering,
    to_items,
    to_json,
)

__all__ = [
    "INTERVENTIONS",
    "Ablate",
    "Amplify",
    "Clamp",
    "Dampen",
    "Intervention",
    "Setting",
    "SharedItem",
    "SharedSetting",
    "Steering",
    "concept_head",
    "format_steering",
    "from_items",
    "from_json",
    "parse_steering",
    "steer_residual",
    "steered",
    "to_items",
    "to_json",
]
