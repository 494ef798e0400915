"""A small model that is served, and a server in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from model_kit import SETTINGS, write_model

from nnunetv2_sam3d.server.http_app import Served, create_app
from nnunetv2_sam3d.server.leases import Leases
from nnunetv2_sam3d.server.listening import bind, server_of
from nnunetv2_sam3d.server.offer import Offer

SPACING, SHAPE = (3.0, 1.0, 1.0), (10, 20, 20)  # of the training's images
KEY = "a key that is long enough"


def write_served(folder: Path, make_network: Any, *, clicks: str = "mixed", **sizes: Any) -> Path:
    """A model of one channel and two labels in nnU-Net's folders."""
    network = make_network(1, **{"num_classes": 3, "signed_clicks": True, **SETTINGS["network"], **sizes})
    model = write_model(folder, [network], spacing=(1.5, 1.0, 1.0), transpose_forward=(0, 1, 2), mirror_axes=(1,))
    plans = json.loads((model / "plans.json").read_text())
    plans["original_median_spacing_after_transp"], plans["original_median_shape_after_transp"] = SPACING, SHAPE
    settings = plans["configurations"]["3d_fullres"]["sam3d"]
    settings["clicks"] = clicks
    if clicks == "none":
        settings["network"].pop("signed_clicks", None)
    (model / "plans.json").write_text(json.dumps(plans))
    return model


def phantom(shape: Sequence[int] = SHAPE, dtype: Any = np.int16) -> np.ndarray:
    """An image (1, k, j, i) with a bright ball."""
    places = np.indices(shape).T - np.array([4, 12, 7])
    ball = ((places * (2, 1, 1)) ** 2).sum(-1).T < 30
    return (np.random.default_rng(0).normal(100, 20, shape) + 300 * ball).astype(dtype)[None]


@contextmanager
def serving(
    offer: Offer, key: str | None = None, image_bytes: int = 1 << 24, **leases: Any
) -> Iterator[tuple[str, Any]]:
    """A server that listens; its URL and its leases."""
    made = Leases(offer.new_session, **leases)
    app = create_app(made, replace(Served.of(offer, key), image_bytes=image_bytes))
    with bind("127.0.0.1", 0) as listener:
        server: uvicorn.Server = server_of(app, lambda: None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", made
        finally:
            server.should_exit = True
            thread.join()
