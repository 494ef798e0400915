"""Prediction with and without clicks: windows, whole volumes, folders of files."""
