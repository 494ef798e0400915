"""Tests of trained models with clicks, and what their adapters do."""
