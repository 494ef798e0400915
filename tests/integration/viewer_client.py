"""A sitting with the viewers' own client, in the order of 3D Slicer's plugin; a script for any version of the client.

Usage: viewer_client.py URL IMAGE.npz MASKS.npz, or viewer_client.py URL vanish
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import numpy as np
from nnInteractive.inference.remote.remote_session import nnInteractiveRemoteInferenceSession


def vanish(url: str) -> None:
    """Claims a session and dies with it."""
    nnInteractiveRemoteInferenceSession(url)
    os._exit(0)


def sit(url: str, image_file: str, masks_file: str) -> None:
    """Clicks on an image, takes everything back, starts again on the same image of another type."""
    given = np.load(image_file)
    image, spacing, clicks = given["image"], given["spacing"], given["clicks"]
    masks: dict[str, np.ndarray] = {}
    with nnInteractiveRemoteInferenceSession(url) as session:
        assert session.ping() and session.supports_undo and session.supported_interactions["points"]
        assert not session.supports_initial_label and not any(
            there for name, there in session.supported_interactions.items() if name != "points"
        )
        session.set_do_autozoom(False)
        for number, sent in enumerate((image, image.astype(np.float64), np.asfortranarray(image.astype(np.int32)))):
            session.set_image(sent[None], {"spacing": spacing})
            assert session.original_image_shape == (1, *image.shape)
            buffer = np.zeros(image.shape, np.uint8)
            session.set_target_buffer(buffer)
            session.reset_interactions()
            for count, click in enumerate(clicks, 1):
                session.add_point_interaction([float(place) for place in click], include_interaction=True)
                masks[f"{number}_{count}"] = buffer.copy()
            if number:
                continue
            assert session.lease_status()["remaining_seconds"] > 0 and session.heartbeat() > 0
            for count in reversed(range(len(clicks))):
                assert session.undo()
                assert (buffer == masks.get(f"0_{count}", np.zeros_like(buffer))).all()
            assert not session.undo() and not buffer.any()
            assert session.add_point_interaction(clicks[0].tolist(), True, run_prediction=False) is None
            assert not buffer.any()
            session._predict()
            assert (buffer == masks["0_1"]).all()
    np.savez(masks_file, version=version("nninteractive-client"), **masks)


if __name__ == "__main__":
    if sys.argv[2] == "vanish":
        vanish(sys.argv[1])
    else:
        sit(*sys.argv[1:])
