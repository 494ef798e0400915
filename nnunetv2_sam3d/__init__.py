"""nnU-Net v2 plugin: SAM's image encoder lifted to 3D by adapters (3DSAM-adapter, DualPath).

The trainers need no import: nnU-Net finds them by name once this package is installed. ``load_model``, ``Click`` and
``ClickPredictor`` are here for using a trained network from Python. Every Python process of the environment imports
this module at start-up (see ``_discovery``), so it must stay tiny: what it offers is imported on first use.
"""

TYPE_CHECKING = False  # type checkers take it for true; importing it from typing would cost start-up time
if TYPE_CHECKING:
    from nnunetv2_sam3d.clicks.click import Click
    from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
    from nnunetv2_sam3d.weights.reading import load_model

__version__ = "0.2.0"
__all__ = ["Click", "ClickPredictor", "__version__", "load_model"]
_PLACES = {"Click": "clicks.click", "ClickPredictor": "inference.click_predictor", "load_model": "weights.reading"}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)  # from now on an ordinary attribute
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
