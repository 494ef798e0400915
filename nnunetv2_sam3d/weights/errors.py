"""The error of weights files. Imports no PyTorch, for the command line."""


class WeightsError(ValueError):
    """A weights file cannot be used; the message says what it is, what was expected and what to do."""
