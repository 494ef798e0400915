"""A browser and napari for tests: found, or installed where that is asked for; otherwise a test says what is absent."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

INSTALL = "nnUNet_sam3d_test_install_viewers"  # a variable that lets the tests install viewers with apt and pip
NAPARI = "nnUNet_sam3d_test_napari"  # a variable with the Python of an environment that has napari and its plugin
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WITHOUT_GRAPHICS_CARD = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NAPARI_PACKAGES = ("napari[pyqt6]", "napari-nninteractive", "nninteractive-client")
WINDOW_PACKAGES = (
    "xvfb xauth libegl1 libgl1 libgl1-mesa-dri libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 "
    "libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libdbus-1-3"
).split()


def require_browser() -> str:
    """The path of Chromium; skips the test without it, or without Playwright, which moves its mouse."""
    if _found(BROWSERS) is None:
        _install_debian("no browser is installed", "chromium")
    if importlib.util.find_spec("playwright") is None:
        if not os.environ.get(INSTALL):
            pytest.skip(f"the package playwright is not installed; {INSTALL}=1 installs it")
        _run([sys.executable, "-m", "pip", "install", "-q", "playwright"])
        importlib.invalidate_caches()
    browser = _found(BROWSERS)
    assert browser is not None
    return browser


def require_napari(folder: Path) -> str:
    """The Python of an environment with napari and its plugin, made in a folder if that is asked for."""
    if shutil.which("xvfb-run") is None:
        _install_debian("Xvfb, for a window without a screen, is not installed", *WINDOW_PACKAGES)
    if python := os.environ.get(NAPARI):
        return python
    if not os.environ.get(INSTALL):
        pytest.skip(
            f"napari is not installed; {INSTALL}=1 installs it into an environment of its own, or {NAPARI} names it"
        )
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    _run([python, "-m", "pip", "install", "-q", *NAPARI_PACKAGES])
    return python


def _found(names: Sequence[str]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _install_debian(reason: str, *packages: str) -> None:
    if not os.environ.get(INSTALL) or not shutil.which("apt-get") or os.geteuid():
        pytest.skip(f"{reason}; {INSTALL}=1 installs it with apt where there is apt, as root")
    _run(["apt-get", "update"])
    _run(["apt-get", "install", "-y", "--no-install-recommends", *packages])


def _run(command: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if result.returncode:
        pytest.skip(f"{' '.join(command)} failed: {result.stderr.strip()[-300:]}")
