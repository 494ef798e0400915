"""Clicks: drawn for training, given by users, brought to the network."""
