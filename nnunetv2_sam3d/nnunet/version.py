"""The check that the installed nnU-Net is one whose internals this package knows."""

import re
from importlib.metadata import PackageNotFoundError, version

SUPPORTED_NNUNET = ">=2.8,<2.9"
_SUPPORTED_SERIES = (2, 8)  # the same as numbers: every 2.8.x, development and pre-releases of it included


def check_nnunet_version() -> str:
    """Returns the version of the installed nnU-Net.

    Raises:
        RuntimeError: nnU-Net is not installed, or in a version outside ``SUPPORTED_NNUNET``.
    """
    supported = f"nnunetv2{SUPPORTED_NNUNET}"
    repair = f'nnunetv2_sam3d needs {supported}; install it with: pip install "{supported}"'
    try:
        installed = version("nnunetv2")
    except PackageNotFoundError:
        raise RuntimeError(f"nnU-Net (nnunetv2) is not installed. {repair}") from None
    if _series(installed) != _SUPPORTED_SERIES:
        raise RuntimeError(f"nnU-Net (nnunetv2) {installed} is installed, which is not supported. {repair}")
    return installed


def _series(installed: str) -> tuple[int, int] | None:
    """Returns the first two numbers of a version, (2, 8) for 2.8.1.dev0, or None if ``installed`` is no version."""
    match = re.match(r"v?(\d+)(?:\.(\d+))?(?![\d!])", installed.strip())
    return (int(match[1]), int(match[2] or 0)) if match else None
