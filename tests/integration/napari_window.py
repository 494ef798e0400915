"""Run by an environment with napari: opens an image in a window, connects to a server, clicks with the mouse.

Arguments: address of the server, image, file for a picture of the window; and if it is to click: voxel k, j, i as
napari has them, file for the mask (NumPy). Prints what the window showed as a warning, what it shows of the model, and
where it was clicked.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import napari
import numpy as np
from napari.utils.notifications import Notification, notification_manager
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


def connect(viewer: napari.Viewer, url: str, image: str) -> object:
    """Opens the image, enters the address, presses Initialize; once more if the server refused the image."""
    viewer.window.resize(1366, 768)
    viewer.open(image, plugin="napari-nifti")
    if viewer.layers[0].data.min() < -500:
        viewer.layers[0].contrast_limits = (-160, 240)  # soft tissue in CT
    _, plugin = viewer.window.add_plugin_dock_widget("napari-nninteractive")
    plugin.server_url_edit.setText(url)
    plugin.on_remote_settings_changed()
    warnings = []

    def keep(notification: Notification) -> None:
        if "send image" in notification.message:
            warnings.append(notification.message)

    notification_manager.notification_ready.connect(keep)

    def ready() -> bool:  # the point layer takes clicks when the server has the image
        active = viewer.layers.selection.active
        return layer(viewer, "Label Layer") is not None and getattr(active, "mode", "") == "add"

    plugin.init_button.click()
    wait(lambda: ready() or warnings, "the server")
    if warnings:
        settle(1)
        print("the window showed:", *warnings)
        plugin.init_button.click()
        wait(ready, "the server after its warning")
    settle(1)
    print("the window shows:", plugin.model_license_label.text())
    return plugin


def layer(viewer: napari.Viewer, name: str) -> object:
    """The layer whose name has this in it."""
    return next((each for each in viewer.layers if name in each.name), None)


def click(viewer: napari.Viewer, place: tuple[int, ...], mask_file: str) -> None:
    """Clicks on a voxel with the mouse, and keeps the mask."""
    image = viewer.layers[0]
    world = image.data_to_world(place)
    viewer.dims.set_point(0, world[0])
    viewer.camera.center = world  # the voxel is in the middle of the canvas
    viewer.camera.zoom *= 1.6
    settle(1)
    canvas = viewer.window._qt_viewer.canvas.native
    middle = QPoint(canvas.width() // 2, canvas.height() // 2)
    QTest.mouseMove(canvas, middle)
    settle(0.5)
    QTest.mouseClick(canvas, Qt.LeftButton, Qt.NoModifier, middle)
    wait(lambda: np.any(layer(viewer, "Label Layer").data), "the mask")
    settle(1)
    np.save(mask_file, np.asarray(layer(viewer, "Label Layer").data))
    print("clicked at", np.round(image.world_to_data(viewer.cursor.position), 2).tolist())


def main(url: str, image: str, picture: str, *voxel_and_mask: str) -> None:
    viewer = napari.Viewer()
    plugin = connect(viewer, url, image)
    if voxel_and_mask:
        *voxel, mask_file = voxel_and_mask
        click(viewer, tuple(int(index) for index in voxel), mask_file)
    viewer.screenshot(picture, canvas_only=False, flash=False)
    plugin._close()
    settle(0.5)


main(*sys.argv[1:])
sys.stdout.flush()
os._exit(0)  # Qt's threads do not always end in a window without a screen
