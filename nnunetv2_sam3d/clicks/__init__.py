"""Clicks: their files, their geometry, and their simulation."""
