"""``nnUNetv2_sam3d serve``"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from nnunetv2_sam3d.commands.common import (
    add_command,
    add_prediction_options,
    choose_device,
    find_model_of,
    folds_of,
    say,
)

if TYPE_CHECKING:
    from nnunetv2_sam3d.server.offer import Offer

PORT = 1527
KEY = "NN_INTERACTIVE_API_KEY"  # as the clients call it
CLIENT_PATIENCE_S = 60  # of the viewers' client, for a click


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "serve",
        "Put a trained model behind a browser, 3D Slicer and napari. The viewers' nnInteractive plugins connect to it "
        "and show the mask after each click. Models without clicks, nnU-Net's own included, show the structure under "
        "the click.",
        """\
        nnUNetv2_sam3d serve -m nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__3d_fullres
        nnUNetv2_sam3d serve -d 220 -tr nnUNetTrainer_SAM3DFull -f 0 --target tumour --disable_tta
        nnUNetv2_sam3d serve -m MODEL --axes ikj
        nnUNetv2_sam3d serve -m MODEL --host 0.0.0.0 --api-key KEY --sessions 5
        """,
    )
    add_prediction_options(parser)
    parser.add_argument(
        "--target", metavar="NAME",
        help="label or region of dataset.json that clicks are on and the mask shows (default: what the training's "
        "clicks were on)",
    )  # fmt: skip
    parser.add_argument("--only-clicked", action="store_true", help="show only the structures that were clicked on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s; 0 takes a free one")
    parser.add_argument(
        "--api-key", metavar="KEY",
        help=f"what clients must show; needed for other hosts than this machine (default: the variable {KEY})",
    )  # fmt: skip
    parser.add_argument(
        "--sessions", type=int, default=3, metavar="N", help="clients at a time, each with a volume (default: 3)"
    )
    parser.add_argument(
        "--idle", type=float, default=600.0, metavar="S",
        help="seconds without a request after which a session ends (default: 600)",
    )  # fmt: skip
    parser.add_argument(
        "--liveness", type=float, default=60.0, metavar="S",
        help="seconds without a sign of the client after which its session ends (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--axes", default="kji", metavar="ORDER",
        help="which axes (k, j, i) of a viewer's volume are the model's z, y and x (default: kji, as in a file that "
        "nnU-Net reads); ikj for volumes whose slices are stacked along the last axis",
    )  # fmt: skip
    parser.add_argument(
        "--flip", default="", metavar="AXES", help="axes of a viewer's volume that run backwards, such as k or ji"
    )
    parser.add_argument(
        "--unchecked-axes", action="store_true",
        help="take volumes whose axes do not look like the training's, with a warning",
    )  # fmt: skip
    parser.add_argument(
        "--confirm-axes", action="store_true",
        help="refuse, once, a volume whose axes cannot be told, so that the viewers' client raises the warning; take "
        "it when it is sent again within ten minutes (default: take it, with a warning in the log and in the answer)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Opens the model, measures, and answers until Ctrl-C."""
    _check_libraries()
    import logging

    from nnunetv2_sam3d.server.axis_order import AxisOrder
    from nnunetv2_sam3d.server.browser_image import delete_temporary_folders
    from nnunetv2_sam3d.server.browser_page import PageFacts, add_page
    from nnunetv2_sam3d.server.http_app import Served, create_app
    from nnunetv2_sam3d.server.leases import Leases
    from nnunetv2_sam3d.server.listening import bind, serve
    from nnunetv2_sam3d.server.offer import Offer
    from nnunetv2_sam3d.server.refusals import is_loopback

    key = options.api_key or os.environ.get(KEY)
    if not is_loopback(options.host) and not key:
        raise ValueError(
            f"on {options.host} others can reach the server: give a key that they have to enter, --api-key KEY (a long "
            f"one: python -c 'import secrets; print(secrets.token_urlsafe())'), or the variable {KEY}"
        )
    axes = AxisOrder.parse(options.axes, options.flip)
    device, model = choose_device(options.device), find_model_of(options)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("nnunetv2_sam3d").setLevel(logging.INFO)
    with bind(options.host, options.port) as listener:  # a port that is taken is known before the model is read
        offer = Offer(
            model,
            folds_of(options.folds),
            options.checkpoint,
            target=options.target,
            device=device,
            mirroring=not options.disable_tta,
            only=options.only_clicked,
            axes=axes,
            refuse_axes=not options.unchecked_axes,
            confirm_axes=options.confirm_axes,
            sessions=options.sessions,
            progress=sys.stderr.isatty(),
        )
        leases = Leases(offer.new_session, most=options.sessions, idle_s=options.idle, liveness_s=options.liveness)
        app = create_app(leases, Served.of(offer, key))
        add_page(app, PageFacts.of(offer))
        _introduce(offer, device)
        _say_where(listener.getsockname()[1], options.host, with_key=bool(key), flipped=bool(options.flip))
        with contextlib.suppress(KeyboardInterrupt):  # how a server ends
            serve(app, listener, offer.stop)
        say("stopped")
    if app.state.service.working:  # a window takes long on a slow machine, and nothing of it would be kept
        delete_temporary_folders()
        sys.stdout.flush()
        os._exit(0)
    return 0


def _check_libraries() -> None:
    """Raises RuntimeError if what the server is built on is absent."""
    try:
        import blosc2  # noqa: F401
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"{error.name} is not installed: pip install fastapi uvicorn blosc2 (the extra [serve])"
        ) from error


def _introduce(offer: Offer, device: str) -> None:
    """What is served, and how long it takes."""
    say(f"model: {offer.plans.dataset_name}, {offer.model.name}, folds {', '.join(map(str, offer.folds))}, on {device}")
    say(f"target: {offer.target.name} (labels {', '.join(map(str, offer.target.labels))})")
    size = " x ".join(f"{length:.3g}" for length in offer.spacing)
    say(f"voxel size of the model: {size} mm along z, y, x; the training's images: {offer.geometry}")
    flipped = f", {offer.axes.flipped} reversed" if offer.axes.flipped else ""
    say(f"axes: a volume's {', '.join(offer.axes.name)} are the model's z, y, x{flipped}")
    say(offer.axes_in_words)
    if offer.reorients:
        say(
            "Warning: the training's images were turned to one orientation when they were read, and a viewer's volume "
            "is not: bring it into that orientation in the viewer (3D Slicer: Orient Scalar Volume)"
        )
    say(f"clicks: {offer.clicks_in_words}")
    if offer.doubt:
        say(f"Warning: {offer.doubt}")
    say("measuring ...")
    timings = offer.measure()
    text = f"a volume of the training's median size takes about {_duration(timings.image_s)}"
    if timings.first_click_s is not None and timings.next_click_s is not None:
        text += (
            f", a click about {_duration(timings.first_click_s)}, another one near it {_duration(timings.next_click_s)}"
        )
    say(f"{text} on this device, {offer.passes} passes for each window (folds times mirrorings)")
    if (timings.first_click_s or 0) > CLIENT_PATIENCE_S:
        say(
            f"Warning: the viewers give up after {CLIENT_PATIENCE_S} s. Faster: --disable_tta, one fold (-f 0), "
            "or a GPU"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds / 60:.0f} min"


def _say_where(port: int, host: str, *, with_key: bool, flipped: bool) -> None:
    """Where it listens, and what to enter in the viewers."""
    name = {"0.0.0.0": "THIS_MACHINE", "::": "THIS_MACHINE"}.get(host, f"[{host}]" if ":" in host else host)
    url, key = f"http://{name}:{port}", ", and the key" if with_key else ""
    say(f"listening on {url}; Ctrl-C ends it")
    say(
        f"3D Slicer: extension NNInteractive 1.0 or newer, Remote, server URL {url}{key}; Initialize, then place points"
    )
    say(f"napari: plugin napari-nninteractive 2.5 or newer, remote server, URL {url}{key}; Initialize, then add points")
    if not flipped:
        say("        (its reader turns files around; for most NIfTI files start this command with --flip ji)")
    say(f"a browser: {url}{key}; drop a NIfTI file, then click")
