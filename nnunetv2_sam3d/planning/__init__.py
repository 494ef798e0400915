"""Plans for the SAM3D trainers, and what fits into memory."""
