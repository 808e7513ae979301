"""Perplexity, concept recall, and honest FLOPs."""

from cocomix.evaluate.flops import labelling_flops, model_flops, sae_training_flops
from cocomix.evaluate.perplexity import perplexity
from cocomix.evaluate.recall import concept_recall

__all__ = ["concept_recall", "labelling_flops", "model_flops", "perplexity", "sae_training_flops"]
