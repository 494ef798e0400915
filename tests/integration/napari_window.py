"""Run by an environment with napari: opens an image in a window, connects to a server, clicks with the mouse.

Arguments: address of the server, image, voxel k, j, i as napari has them, file for the mask (NumPy), file for a picture
of the window.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import napari
import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication


def wait(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Lets the window live until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds} s for {what}")
        QApplication.processEvents()
        time.sleep(0.02)


def settle(seconds: float) -> None:
    """Lets the window live for a while."""
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end, "nothing")


def main(url: str, image: str, k: str, j: str, i: str, mask_file: str, picture: str) -> None:
    place = (int(k), int(j), int(i))
    viewer = napari.Viewer()
    viewer.window.resize(1366, 768)
    viewer.open(image, plugin="napari-nifti")
    picture_layer = viewer.layers[0]
    if picture_layer.data.min() < -500:
        picture_layer.contrast_limits = (-160, 240)  # soft tissue in CT
    _, plugin = viewer.window.add_plugin_dock_widget("napari-nninteractive")
    plugin.server_url_edit.setText(url)
    plugin.on_remote_settings_changed()
    plugin.on_init()

    def layer(name: str) -> object:
        return next((each for each in viewer.layers if name in each.name), None)

    # the point layer, ready for clicks, is there when the server has the image
    wait(lambda: layer("Label Layer") and getattr(viewer.layers.selection.active, "mode", "") == "add", "the server")
    settle(1)
    world = picture_layer.data_to_world(place)
    viewer.dims.set_point(0, world[0])
    viewer.camera.center = world  # the voxel is in the middle of the canvas
    viewer.camera.zoom *= 1.6
    settle(1)
    canvas = viewer.window._qt_viewer.canvas.native
    middle = QPoint(canvas.width() // 2, canvas.height() // 2)
    QTest.mouseMove(canvas, middle)
    settle(0.5)
    QTest.mouseClick(canvas, Qt.LeftButton, Qt.NoModifier, middle)
    wait(lambda: np.any(layer("Label Layer").data), "the mask")
    settle(1)
    viewer.screenshot(picture, canvas_only=False, flash=False)
    np.save(mask_file, np.asarray(layer("Label Layer").data))
    print("clicked at", np.round(picture_layer.world_to_data(viewer.cursor.position), 2).tolist())
    plugin._close()
    settle(0.5)


main(*sys.argv[1:])
sys.stdout.flush()
os._exit(0)  # Qt's threads do not always end in a window without a screen
