"""Clicks: their files, their geometry, and what a network is given of them."""
