"""nnU-Net v2 plugin: SAM's image encoder lifted to 3D by adapters (3DSAM-adapter, DualPath).

The trainers need no import: nnU-Net finds them by name once this package is installed. ``load_model`` is here for using
a trained network from Python. Every Python process of the environment imports this module at start-up (see
``_discovery``), so it must stay tiny: what it offers is imported on first use.
"""

TYPE_CHECKING = False  # type checkers take it for true; importing it from typing would cost start-up time
if TYPE_CHECKING:
    from nnunetv2_sam3d.weights.reading import load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> object:
    if name == "load_model":
        from nnunetv2_sam3d.weights.reading import load_model

        globals()[name] = load_model  # from now on an ordinary attribute
        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
