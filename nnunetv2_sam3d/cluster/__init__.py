"""Slurm: the text of job scripts (pure functions), then writing and submitting them."""
