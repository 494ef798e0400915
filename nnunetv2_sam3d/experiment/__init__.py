"""A whole comparison with stock nnU-Net commands in sub-processes: plan, train, validate, predict, compare."""
