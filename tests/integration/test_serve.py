"""``nnUNetv2_sam3d serve`` in a process of its own, and the viewers' unmodified client in others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import label

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason="pip install '.[serve]'")
remote = pytest.importorskip("nnInteractive.inference.remote.remote_session")

Workspace = Any  # the class in conftest.py
BothAtOnce = Callable[[list[Callable[[], Any]]], list[Any]]
OLDEST = "2.5.1"
IDLE_S = 10
CLICKS = [(6, 7, 8), (13, 16, 8), (2, 20, 3)]  # k, j, i
SCRIPT = Path(__file__).with_name("viewer_client.py")


@pytest.fixture(scope="session")
def oldest_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest client that is supported; the newest one is installed with the tests."""
    folder = tmp_path_factory.mktemp("client")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
    done = subprocess.run([*install, f"nninteractive-client=={OLDEST}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nninteractive-client {OLDEST} cannot be installed here: {done.stderr[-300:]}")
    return folder


@contextmanager
def serving(workspace: Workspace, trainer: str, *more: object, **options: Any) -> Iterator[tuple[str, list[str], Any]]:
    """The command: its URL, what it printed until it listened, its process."""
    process = workspace.start(
        "nnUNetv2_sam3d", "serve", "-m", workspace.model(trainer), "--port", 0, "--device", "cpu", *more, **options
    )
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("napari:"):
                break
        where = [line.split()[2].strip(";") for line in lines if line.startswith("listening on ")]
        assert where, "".join(lines)
        yield where[0], lines, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and output.endswith("stopped\n") and "Traceback" not in output, output


def client(url: str, *arguments: object, folder: Path | None = None) -> None:
    """Runs the script with a version of the client."""
    paths = {} if folder is None else {"PYTHONPATH": str(folder)}
    command = [sys.executable, str(SCRIPT), url, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def image(trained: Workspace, tmp_path: Path) -> Path:
    """An image of whole numbers, as scanners write them, under two names."""
    whole = sitk.Cast(sitk.ReadImage(str(trained.raw / "imagesTr" / "case_0_0000.nii.gz")), sitk.sitkInt16)
    folder = tmp_path / "images"
    folder.mkdir()
    for count in (1, 3):
        sitk.WriteImage(whole, str(folder / f"clicks{count}_0000.nii.gz"))
    array, spacing = sitk.GetArrayFromImage(whole), whole.GetSpacing()[::-1]
    np.savez(tmp_path / "image.npz", image=array, spacing=spacing, clicks=CLICKS)
    return folder


def test_viewers(
    trained: Workspace, image: Path, oldest_client: Path, both_at_once: BothAtOnce, tmp_path: Path
) -> None:
    """Both versions of the client at once; their masks are those of ``predict --clicks``."""
    given = tmp_path / "image.npz"
    with serving(trained, "SAM3DFull", "--sessions", 2, "--idle", IDLE_S) as (url, lines, _):
        both_at_once([
            lambda: client(url, given, tmp_path / "newest.npz"),
            lambda: client(url, given, tmp_path / "oldest.npz", folder=oldest_client),
        ])  # fmt: skip
        client(url, "vanish")
        lasting = remote.nnInteractiveRemoteInferenceSession(url)
        with pytest.raises(remote.ServerAtCapacityError, match="all 2 sessions are in use"):
            remote.nnInteractiveRemoteInferenceSession(url)
        time.sleep(IDLE_S + 0.5)  # the one that vanished and the one that lasts
        with pytest.raises(remote.SessionExpiredError, match="connect again"):
            lasting.add_point_interaction([1, 1, 1], True)
        with remote.nnInteractiveRemoteInferenceSession(url), remote.nnInteractiveRemoteInferenceSession(url):
            pass
    printed = "".join(lines)
    for words in ("target: whole foreground", "voxel size of the model: ", "k, j, i are the model's z, y, x",
                  "background clicks are not known", "a click about", "3D Slicer: ", f"server URL {url}"):  # fmt: skip
        assert words in printed
    table = [f"clicks{count},{k},{j},{i}" for count in (1, 3) for k, j, i in CLICKS[:count]]
    (tmp_path / "clicks.csv").write_text("# space = zyx\ncase,z,y,x\n" + "\n".join(table) + "\n")
    trained.run("nnUNetv2_sam3d", "predict", "-m", trained.model("SAM3DFull"), "-i", image, "-o", tmp_path / "masks",
                "--clicks", tmp_path / "clicks.csv", "--device", "cpu")  # fmt: skip
    for name in ("newest", "oldest"):
        masks = np.load(tmp_path / f"{name}.npz")
        assert (str(masks["version"]) == OLDEST) is (name == "oldest")
        for count in (1, 3):
            expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "masks" / f"clicks{count}.nii.gz"))) > 0
            for sent in range(3):
                np.testing.assert_array_equal(masks[f"{sent}_{count}"], expected)
            assert expected.any()


def test_stock_models(trained: Workspace, users_trainer: Path) -> None:
    """nnU-Net's own network: of its automatic result the connected structure under the click."""
    stock, found = replace(trained, plans="nnUNetPlans"), {"nnUNet_extTrainer": str(users_trainer)}
    image = sitk.ReadImage(str(trained.raw / "imagesTr" / "case_0_0000.nii.gz"))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(stock.fold("Users", 0) / "validation" / "case_0.nii.gz"))) > 0
    with serving(stock, "Users", "--target", "1,2", variables=found) as (url, lines, _):
        assert "a click shows the connected structure" in "".join(lines)
        with remote.nnInteractiveRemoteInferenceSession(url) as session:
            session.set_image(sitk.GetArrayFromImage(image)[None], {"spacing": image.GetSpacing()[::-1]})
            buffer = np.zeros(expected.shape, np.uint8)
            session.set_target_buffer(buffer)
            parts, count = label(expected, np.ones((3, 3, 3)))
            for number in range(1, min(count, 3) + 1):
                session.add_point_interaction(np.argwhere(parts == number)[0].tolist(), True)
                np.testing.assert_array_equal(buffer, (parts > 0) & (parts <= number))
            assert count > 0


@pytest.mark.slow
def test_background_clicks_of_a_trained_model(planned: Workspace, tmp_path: Path) -> None:
    """A model that learned both kinds of clicks: a background click clears voxels, as with ``predict --clicks``."""

    def sign(configurations: dict[str, Any]) -> None:
        settings = configurations["3d_fullres"]["sam3d"]
        settings["network"] = {**settings.get("network", {}), "signed_clicks": True, "click_maps": True}
        settings |= {"epochs": 10, "iterations_per_epoch": 10}

    signed = planned.derive_copy("Signed", sign)
    signed.train("SAM3DFull", 0)
    file = signed.raw / "imagesTr" / "case_0_0000.nii.gz"
    image = sitk.ReadImage(str(file))
    with (
        serving(signed, "SAM3DFull") as (url, lines, _),
        remote.nnInteractiveRemoteInferenceSession(url) as session,
    ):
        assert "background clicks are known" in "".join(lines)
        session.set_image(sitk.GetArrayFromImage(image)[None], {"spacing": image.GetSpacing()[::-1]})
        buffer = np.zeros(image.GetSize()[::-1], np.uint8)
        session.set_target_buffer(buffer)
        masks, clicks = [buffer.copy()], [((6, 7, 8), True), ((13, 16, 8), False), ((2, 20, 3), False)]
        for voxel, positive in clicks:
            session.add_point_interaction(voxel, positive)
            masks.append(buffer.copy())
    assert masks[1].any() and (masks[1] > masks[2]).any()
    table = [f"{k},{j},{i},{'foreground' if positive else 'background'}" for (k, j, i), positive in clicks]
    (tmp_path / "clicks.csv").write_text("# space = zyx\nz,y,x,sign\n" + "\n".join(table) + "\n")
    signed.run("nnUNetv2_sam3d", "predict", "-m", signed.model("SAM3DFull"), "-i", file, "-o", tmp_path / "masks",
               "--clicks", tmp_path / "clicks.csv", "--device", "cpu")  # fmt: skip
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "masks" / "case_0.nii.gz")))
    np.testing.assert_array_equal(masks[-1], predicted > 0)


@pytest.mark.slow
def test_ctrl_c_during_a_prediction(trained: Workspace) -> None:
    """Ends with the window that is at work, and says so to the client."""
    told: list[str] = []

    def upload(url: str) -> None:
        with remote.nnInteractiveRemoteInferenceSession(url) as session:
            try:
                session.set_image(np.zeros((1, 160, 192, 128), np.int16) + 7, {"spacing": (1.25, 1.1, 1.1)})
            except (remote.ServerAtCapacityError, httpx.HTTPError) as error:
                told.append(str(error))

    with serving(trained, "SAM3DFull", "--unchecked-axes") as (url, _, process):
        thread = threading.Thread(target=upload, args=(url,))
        thread.start()
        time.sleep(4)
        assert thread.is_alive()
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        process.wait(timeout=60)
        assert time.monotonic() - start < 20
    thread.join(timeout=30)
    assert told
