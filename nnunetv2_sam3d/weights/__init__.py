"""Weights: read files of several kinds safely, convert them, put them into a network."""

from nnunetv2_sam3d.weights.files import WeightsError
from nnunetv2_sam3d.weights.reading import convert, load_model, read_weights
from nnunetv2_sam3d.weights.transfer import load_into

__all__ = ["WeightsError", "convert", "load_into", "load_model", "read_weights"]
