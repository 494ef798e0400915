"""Weights: read files of several kinds safely, convert them, put them into a network."""
