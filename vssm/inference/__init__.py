"""Builds a classifier from a file of weights and predicts images. Needs no training package."""

from vssm.inference.create import create_model
from vssm.inference.predictor import Predictor, load_predictor
from vssm.inference.saved import is_training, latest_checkpoint, load_weights, read_checkpoint

__all__ = [
    "Predictor",
    "create_model",
    "is_training",
    "latest_checkpoint",
    "load_predictor",
    "load_weights",
    "read_checkpoint",
]
