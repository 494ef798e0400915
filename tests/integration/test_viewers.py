"""``serve`` with a trained model behind a real browser and a real napari, both moved by a mouse."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import nibabel
import numpy as np
import pytest
from matplotlib.image import imread
from viewer_kit import WITHOUT_GRAPHICS_CARD, require_browser, require_napari

Workspace = Any  # the class in conftest.py
WINDOW = {"width": 1366, "height": 625}  # what a browser leaves of a laptop's 768 lines
SECONDS = 60_000  # ms

pytestmark = pytest.mark.slow


@contextmanager
def served(workspace: Workspace, *options: object) -> Iterator[str]:
    """The address of a server with the trained model, which is ended afterwards."""
    model = workspace.model("SAM3DFull")
    process = workspace.start(
        "nnUNetv2_sam3d", "serve", "-m", model, "--port", 0, "--device", "cpu", "--disable_tta",
        "--target", "small", *options,
    )  # fmt: skip
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"listening on (http://\S+?);", line):
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
        yield found.group(1)
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def image(trained: Workspace, tmp_path: Path) -> Path:
    """The raw image of a case, whose file's axes run to the left, to the front and downwards."""
    return (trained.validation_case(2, tmp_path / "images") / "case_2_0000.nii.gz").resolve()


def lesion(workspace: Workspace, image: Path) -> tuple[int, int, int]:
    """The voxel (i, j, k) in the middle of the brighter structure."""
    case = image.name.removesuffix("_0000.nii.gz")
    labels = np.asarray(nibabel.load(workspace.raw / "labelsTr" / f"{case}.nii.gz").dataobj)
    i, j, k = np.argwhere(labels == 2).mean(0).round().astype(int).tolist()
    return i, j, k


class Page:
    """The page in a browser, used as a person would."""

    def __init__(self, page: Any, url: str, key: str | None) -> None:
        self.page, self.troubles = page, list[str]()
        page.set_default_timeout(SECONDS)
        page.on("console", lambda message: message.type == "error" and self.troubles.append(message.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:", "blob:")) or self.troubles.append(request.url),
        )
        page.goto(url)
        for typed in ("a wrong one", key) if key else ():
            page.wait_for_selector("#key-dialog[open]")
            page.fill("#key", typed)
            page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")

    def drop(self, file: Path) -> None:
        """Drags a file from the desktop onto the page."""
        transfer = self.page.evaluate_handle(
            """([content, name]) => {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], name));
                return transfer;
            }""",
            [base64.b64encode(file.read_bytes()).decode(), file.name],
        )
        self.page.dispatch_event("#sheet", "dragover", {"dataTransfer": transfer})
        assert self.page.is_visible("#drop")
        self.page.dispatch_event("#sheet", "drop", {"dataTransfer": transfer})
        self.ready()

    def ready(self) -> None:
        """Waits until nothing is computed."""
        self.page.wait_for_selector("#mask:enabled, #message:not([hidden])")
        self.page.wait_for_selector("#busy", state="hidden")

    @property
    def clicks(self) -> list[tuple[str, list[int]]]:
        """Sign and voxel of each click in the list."""
        texts = self.page.locator("#clicks button").all_inner_texts()
        return [(text.strip()[0], [int(number) for number in re.findall(r"\d+", text)]) for text in texts]

    def status(self, name: str) -> list[int]:
        """The numbers behind a word in the line below the planes."""
        (found,) = re.findall(rf"{name} ([\d, /]+)", self.page.inner_text("#status"))
        return [int(number) for number in re.findall(r"\d+", found)]

    def large_plane(self) -> dict[str, float]:
        """Where the large plane is."""
        place = self.page.locator("#sheet").bounding_box()
        return {"x": place["x"], "y": place["y"], "width": 0.62 * place["width"], "height": place["height"]}

    def scroll_to(self, slice_number: int) -> None:
        """Turns the wheel over the large plane."""
        place = self.large_plane()
        self.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        self.page.mouse.wheel(0, 60)
        while (now := self.status("axial")[0]) != slice_number:
            self.page.mouse.wheel(0, 60 if now > slice_number else -60)

    def brightest(self) -> tuple[float, float]:
        """Where a person sees the brightest spot in the large plane."""
        picture = imread(io.BytesIO(self.page.screenshot(clip=self.large_plane())))  # (rows, columns, RGB)
        grey = picture[..., :3].min(2)  # neither mask nor clicks are white
        rows, columns = np.nonzero(grey > 0.8 * grey.max())
        place = self.large_plane()
        return place["x"] + columns.mean(), place["y"] + rows.mean()

    def download(self, button: str, folder: Path) -> Path:
        with self.page.expect_download() as caught:
            self.page.click(button)
        file = folder / caught.value.suggested_filename
        caught.value.save_as(file)
        return file


@contextmanager
def browsing(url: str, key: str | None = None) -> Iterator[Page]:
    """A page in Chromium; with a key, which is typed when the page asks for it."""
    browser = require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=[*WITHOUT_GRAPHICS_CARD, "--no-sandbox"])
        page = Page(chromium.new_context(viewport=WINDOW, accept_downloads=True).new_page(), url, key)
        yield page
        chromium.close()


def test_a_browser(trained: Workspace, image: Path, tmp_path: Path) -> None:
    """From the dropped file to the files that ``predict`` reads and writes, with a mouse."""
    require_browser()
    target = lesion(trained, image)
    with served(trained) as url, browsing(url) as page:
        page.drop(image)
        automatic = page.download("#mask", tmp_path)
        no_clicks = automatic.rename(tmp_path / "automatic.nii.gz")

        # the file's k runs downwards in this case, or upwards
        affine, shape = nibabel.load(image).affine, nibabel.load(image).shape
        page.scroll_to(target[2] + 1 if affine[2, 2] > 0 else shape[2] - target[2])
        page.page.keyboard.press("Space")  # hides the mask
        x, y = page.brightest()
        page.page.mouse.move(x, y)
        assert np.abs(np.subtract(page.status("voxel"), target)).max() <= 2
        page.page.mouse.click(x, y)
        page.ready()
        (first,) = page.clicks
        assert first[0] == "+" and np.abs(np.subtract(first[1], target)).max() <= 2
        once = page.download("#mask", tmp_path).rename(tmp_path / "once.nii.gz")

        page.page.mouse.click(x + 60, y, button="right")
        page.ready()
        if len(page.clicks) == 1:  # a model without background clicks says so
            assert "background" in page.page.inner_text("#message-text")
            page.page.mouse.click(x + 60, y)
            page.ready()
        assert len(page.clicks) == 2 and page.clicks[0] == first
        mask, clicks = page.download("#mask", tmp_path), page.download("#save-clicks", tmp_path)
        assert (mask.name, clicks.name) == ("case_2.nii.gz", "case_2_clicks.json")

        output = tmp_path / "predicted"
        trained.run(
            "nnUNetv2_sam3d", "predict", "-m", trained.model("SAM3DFull"), "-i", image, "-o", output, "--clicks",
            clicks, "--device", "cpu", "--disable_tta",
        )  # fmt: skip
        assert np.array_equal(voxels(mask), voxels(output / "case_2.nii.gz"))
        assert np.array_equal(nibabel.load(mask).affine, nibabel.load(output / "case_2.nii.gz").affine)

        page.page.keyboard.press("z")
        page.ready()
        assert page.clicks == [first]
        assert np.array_equal(voxels(page.download("#mask", tmp_path)), voxels(once))
        page.page.click("#reset")
        page.ready()
        assert page.clicks == [] and page.page.is_disabled("#undo")
        assert np.array_equal(voxels(page.download("#mask", tmp_path)), voxels(no_clicks))

        page.page.focus("#sheet")
        page.page.keyboard.press("Enter")  # a click at the cross
        page.ready()
        assert page.clicks[0][0] == "+"
        before = page.status("axial")[0]
        page.page.keyboard.press("PageUp")
        assert page.status("axial")[0] == before + 1

        page.page.evaluate("document.getElementById('message').hidden = true")
        page.drop(broken(image, tmp_path))
        assert "cut off" in page.page.inner_text("#message-text")
        assert page.page.is_visible("#empty") and page.page.is_disabled("#mask")
        overflow = page.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0  # nothing beside the laptop's screen
        assert [trouble for trouble in page.troubles if "400" not in trouble and "niivue" not in trouble] == []


def voxels(file: Path) -> np.ndarray:
    """Of a segmentation, (i, j, k)."""
    return np.asarray(nibabel.load(file).dataobj)


def broken(image: Path, folder: Path) -> Path:
    """The same file, cut off."""
    file = folder / "broken_0000.nii"
    file.write_bytes(nibabel.load(image).to_bytes()[:-5000])
    return file


def test_a_browser_with_a_key_and_a_session_that_ends(trained: Workspace, image: Path, tmp_path: Path) -> None:
    """The page asks for the key. When its session has ended, it begins another one with the same image and clicks."""
    require_browser()
    key = "of the test"

    def end_session() -> None:
        headers = {"Authorization": f"Bearer {key}", "X-Lease-Token": leases[-1]}
        with urlopen(Request(f"{url}/release", b"", headers)) as answer:
            assert json.loads(answer.read()) == {"released": True}

    leases: list[str] = []
    with served(trained, "--api-key", key, "--sessions", 1) as url, browsing(url, key) as page:
        page.page.on("request", lambda request: leases.append(request.headers.get("x-lease-token", "")))
        page.drop(image)
        place = page.large_plane()
        page.page.mouse.click(place["x"] + 0.5 * place["width"], place["y"] + 0.5 * place["height"])
        page.ready()
        clicks = page.clicks
        mask = page.download("#mask", tmp_path).rename(tmp_path / "before.nii.gz")
        end_session()
        assert np.array_equal(voxels(page.download("#mask", tmp_path)), voxels(mask))
        end_session()
        page.page.focus("#sheet")
        page.page.keyboard.press("Enter")
        page.ready()
        assert page.clicks == [*clicks, ("+", clicks[0][1])]


def test_a_browser_with_a_turned_file(trained: Workspace, tmp_path: Path) -> None:
    """Axes in another order, two of them backwards: what is clicked on the screen is that voxel of the file."""
    require_browser()
    turn = [[2, 1], [0, -1], [1, 1]]  # for each axis of the file: which axis it becomes, and whether it runs on or back
    image, labels = (
        nibabel.load(trained.raw / name).as_reoriented(np.array(turn))
        for name in ("imagesTr/case_1_0000.nii.gz", "labelsTr/case_1.nii.gz")
    )
    nibabel.save(image, tmp_path / "case_1_0000.nii.gz")
    target = np.argwhere(np.asarray(labels.dataobj) == 2).mean(0).round()
    upwards = int(np.argmax(np.abs(image.affine[2, :3])))  # the file's axis from foot to head
    with served(trained, "--unchecked-axes") as url, browsing(url) as page:
        page.drop(tmp_path / "case_1_0000.nii.gz")
        place = target[upwards]
        page.scroll_to(int(place + 1 if image.affine[2, upwards] > 0 else image.shape[upwards] - place))
        page.page.keyboard.press("Space")
        x, y = page.brightest()
        page.page.mouse.click(x, y)
        page.ready()
        ((sign, voxel),) = page.clicks
        assert sign == "+" and np.abs(voxel - target).max() <= 2
        mask = nibabel.load(page.download("#mask", tmp_path))
        assert mask.shape == image.shape and np.allclose(mask.affine, image.affine, atol=1e-4)


@pytest.fixture(scope="module")
def napari_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with napari."""
    return require_napari(tmp_path_factory.mktemp("napari"))


def napari_window(python: str, folder: Path, *arguments: object) -> str:
    """What ``napari_window.py`` printed."""
    result = subprocess.run(
        ["xvfb-run", "-a", "-s", "-screen 0 1400x900x24", python, Path(__file__).with_name("napari_window.py"),
         *map(str, arguments)],
        env={**os.environ, "XDG_CONFIG_HOME": str(folder / "settings")},  # the plugin keeps the address
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_napari(trained: Workspace, napari_python: str, image: Path, tmp_path: Path) -> None:
    """The unmodified plugin in a window: connect, click, and the mask is in its layer."""
    i, j, k = lesion(trained, image)
    # napari's reader turns images to superior, anterior, right: k and i of this file run the other way
    depth, width = nibabel.load(image).shape[2], nibabel.load(image).shape[0]
    seen = [str(depth - 1 - k), str(j), str(width - 1 - i)]
    mask_file, picture = tmp_path / "mask.npy", tmp_path / "window.png"
    with served(trained, "--flip", "ki") as url:
        said = napari_window(napari_python, tmp_path, url, image, picture, *seen, mask_file)
    assert f"clicked at [{'.0, '.join(seen)}.0]" in said and "showed" not in said
    assert "the window shows: Model license: " in said and "A volume's axes must lie" in said
    clicks = {
        "format": "nnunetv2_sam3d clicks",
        "version": 1,
        "space": "ijk",
        "clicks": [{"position": [i, j, k], "label": "small"}],
    }
    (tmp_path / "clicks.json").write_text(json.dumps(clicks))
    trained.run(
        "nnUNetv2_sam3d", "predict", "-m", trained.model("SAM3DFull"), "-i", image, "-o", tmp_path / "out", "--clicks",
        tmp_path / "clicks.json", "--device", "cpu", "--disable_tta",
    )  # fmt: skip
    assert np.array_equal(np.load(mask_file)[::-1, :, ::-1].T > 0, voxels(tmp_path / "out" / "case_2.nii.gz") == 2)
    assert picture.stat().st_size > 50_000


def test_napari_shows_that_axes_cannot_be_told(
    trained: Workspace, napari_python: str, image: Path, tmp_path: Path
) -> None:
    """With ``--confirm-axes`` the unmodified plugin shows the warning; Initialize once more, and the image is taken."""
    edge = min(nibabel.load(image).shape)
    cube = np.asarray(nibabel.load(image).dataobj)[:edge, :edge, :edge]
    nibabel.save(nibabel.Nifti1Image(cube, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "cube.nii.gz")
    with served(trained, "--confirm-axes") as url:
        said = napari_window(napari_python, tmp_path, url, tmp_path / "cube.nii.gz", tmp_path / "window.png")
    assert "the window showed" in said and "do not tell its axes apart" in said and "send it again" in said
