"""Synthetic CT data for demonstrations and end-to-end checks."""
