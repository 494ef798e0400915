"""The one error of this package."""


class WeightsError(ValueError):
    """A weights file cannot be used; the message says what it is, what was expected and what to do."""
