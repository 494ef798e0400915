"""The command predict and ClickPredictor: files in, segmentations out, with a model folder of two folds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from blobs import GEOMETRIES, centres, write_blobs
from model_kit import LABELS, PATCH, REGIONS, SETTINGS, fiducials, predict, read, stock_prediction, write_model
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from slicer_files import markups

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.clicks.click import Click, ClickError
from nnunetv2_sam3d.clicks.click_files import read_clicks
from nnunetv2_sam3d.clicks.placing import clicks_for_case
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
from nnunetv2_sam3d.inference.only_clicked import only_clicked
from nnunetv2_sam3d.inference.predict_files import plan_jobs
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.images import find_cases, read_header, read_image

Make = Callable[..., SAM3D]


def test_without_clicks_it_is_nnunetv2_predict(model: Path, images: Path, tmp_path: Path) -> None:
    stock_prediction(model, (0, 1), images, tmp_path / "stock")
    predict(model, images, tmp_path / "ours", "--save_probabilities")
    for case in ("straight", "oblique"):
        ours, stock = (sitk.ReadImage(str(tmp_path / folder / f"{case}.nii.gz")) for folder in ("ours", "stock"))
        assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(stock))
        assert len(np.unique(sitk.GetArrayFromImage(ours))) > 1
        assert (ours.GetOrigin(), ours.GetDirection()) == (stock.GetOrigin(), stock.GetDirection())
        assert ours.GetSpacing() == stock.GetSpacing() and ours.GetPixelID() == stock.GetPixelID()
        probabilities = [np.load(tmp_path / folder / f"{case}.npz")["probabilities"] for folder in ("ours", "stock")]
        assert np.array_equal(*probabilities)
    for file in ("plans.json", "dataset.json"):
        assert json.loads((tmp_path / "ours" / file).read_text()) == json.loads((tmp_path / "stock" / file).read_text())
    assert not list((tmp_path / "ours").glob("*_clicks.json"))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_window_lies_on_the_fiducial(
    geometry: str, networks: list[SAM3D], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a fiducial of 3D Slicer on a bright blob to the middle of the crop that the network sees."""
    crops = []
    model = write_model(tmp_path, networks[:1], spacing=(1.2, 0.9, 1.0), transpose_forward=(1, 2, 0), mirror_axes=None)
    blobs = write_blobs(tmp_path, geometry)
    predictor = ClickPredictor(model, device="cpu")
    network = predictor.windows.networks[0]
    given = []
    monkeypatch.setattr(network, "encode", lambda x, f=network.encode: (crops.append(x), f(x))[1])
    monkeypatch.setattr(
        network, "decode", lambda f, p, s, d=network.decode, **how: (given.append((p, s)), d(f, p, s, **how))[1]
    )
    predictor.set_image_files(blobs.files)
    automatic = predictor.predict()
    crops.clear()
    given.clear()
    file = read_clicks(fiducials(tmp_path / "case.mrk.json", blobs, [1]))
    clicks = clicks_for_case(file, "case", predictor.properties, automatic.shape, LABELS)
    predictor.predict(clicks)
    (crop,), ((points, signs),) = crops, given
    blob = centres(crop[0].numpy()[1:2] * 1000 + 100)[0]
    assert np.abs(points[0, 0].numpy() - blob).max() < 0.5
    place = predictor.grid.from_image([clicks[0].zyx])[0]
    centred = 0
    for axis, (size, patch) in enumerate(zip(predictor.grid.shape, PATCH, strict=True)):
        if patch / 2 < place[axis] < size - patch / 2 - 1:  # else the window ends with the volume
            assert abs(points[0, 0, axis] - patch / 2) <= 0.5
            centred += 1
    assert centred
    assert signs.tolist() == [[1.0]]


def test_clicks_files_and_records(model: Path, images: Path, tmp_path: Path) -> None:
    blobs = write_blobs(tmp_path, "oblique sagittal", case="copy")
    clicks = fiducials(tmp_path / "clicks" / "oblique.mrk.json", blobs, [0, 2])
    predict(model, images, tmp_path / "clicked", "--clicks", clicks.parent, "-f", 0, "--disable_tta")
    predict(model, images, tmp_path / "automatic", "-f", 0, "--disable_tta")
    pairs = {
        case: [read(tmp_path / folder / f"{case}.nii.gz") for folder in ("clicked", "automatic")]
        for case in ("straight", "oblique")
    }
    assert np.array_equal(*pairs["straight"]) and not np.array_equal(*pairs["oblique"])
    record = tmp_path / "clicked" / "oblique_clicks.json"
    content = json.loads(record.read_text())
    assert content["space"] == "LPS" and content["image"] == "oblique_0000.nii.gz"
    assert np.allclose([click["position"] for click in content["clicks"]], blobs.lps[[0, 2]], atol=1e-3)
    assert list(content["provenance"]["checkpoints"]) == [str(model / "fold_0" / "checkpoint_final.pth")]
    assert content["provenance"]["clicks"]["file"] == str(clicks)
    # the record is a file of clicks that gives the same, and the Python interface gives it too
    predict(model, images / "oblique_0002.nii.gz", tmp_path / "again", "--clicks", record, "-f", 0, "--disable_tta")
    assert np.array_equal(read(tmp_path / "again" / "oblique.nii.gz"), pairs["oblique"][0])
    predictor = ClickPredictor(model, [0], device="cpu", mirroring=False)
    image = np.stack([read(images / f"oblique_{channel:04d}.nii.gz") for channel in range(3)])
    predictor.set_image(image, GEOMETRIES["oblique sagittal"][1][::-1])
    clicks = [Click(tuple(ijk[::-1]), "tumour") for ijk in blobs.ijk[[0, 2]]]
    assert np.array_equal(predictor.predict(), pairs["oblique"][1])
    assert not np.array_equal(predictor.predict(clicks[:1]), pairs["oblique"][0])
    assert np.array_equal(predictor.refine(clicks[1:]), pairs["oblique"][0])
    assert predictor.clicks == tuple(clicks)
    predictor.reset()
    assert np.array_equal(predictor.refine([]), pairs["oblique"][1])


def test_clicks_that_are_cut_off_cost_no_other_image(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images have a border of zeros, which nnU-Net's preprocessing crops."""
    table = tmp_path / "clicks.csv"
    table.write_text("case,space,x,y,z\noblique,zyx,0,0,0\n")
    options = ["-m", model, "-i", images, "-o", tmp_path / "o", "--clicks", table, "-f", 0, "--disable_tta"]
    assert main(["predict", *map(str, options), "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "without clicks: straight" in said.out
    assert f"{table}, for the case oblique: " in said.err and "The other 1 images are there" in said.err
    assert sorted(file.name for file in (tmp_path / "o").glob("*.nii.gz")) == ["straight.nii.gz"]


def test_a_damaged_image_costs_no_other(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = images / "oblique_0001.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    options = ["-m", model, "-i", images, "-o", tmp_path / "o", "-f", 0, "--disable_tta", "--device", "cpu"]
    assert main(["predict", *map(str, options)]) == 1
    said = capsys.readouterr().err
    assert f"{damaged}" in said and "it is damaged" in said and "The other 1 images are there" in said
    assert sorted(file.name for file in (tmp_path / "o").glob("*.nii.gz")) == ["straight.nii.gz"]
    (images / "oblique_0000.nii.gz").write_bytes(b"no image")
    (table := tmp_path / "clicks.csv").write_text("case,space,x,y,z\noblique,zyx,9,9,9\n")
    assert main(["predict", *map(str, options), "--clicks", str(table)]) == 1  # before anything is computed
    assert capsys.readouterr().err.startswith(
        f"nnUNetv2_sam3d predict: {images / 'oblique_0000.nii.gz'} cannot be read"
    )


def test_a_slice_of_two_dimensions(images: Path, tmp_path: Path) -> None:
    """nnU-Net gives it a third axis; its file has two. What macOS leaves beside it is no image."""
    (folder := tmp_path / "slices").mkdir()
    volume = sitk.ReadImage(str(images / "straight_0000.nii.gz"))
    sitk.WriteImage(volume[:, :, 9], str(folder / "slice_0000.nii.gz"))
    (folder / "._slice_0000.nii.gz").write_bytes(b"what macOS leaves")
    (table := tmp_path / "clicks.csv").write_text("i,j,k,label\n10,11,0,tumour\n")
    (case,) = find_cases([folder], {"file_ending": ".nii.gz", "channel_names": {"0": "CT"}})
    properties, shape = read_header(case, SimpleITKIO())
    image, whole = read_image(case.files, SimpleITKIO())
    assert (shape, properties["sitk_stuff"]) == (image.shape[1:], whole["sitk_stuff"])
    (job,) = plan_jobs([case], table, SimpleITKIO(), LABELS)
    assert [click.zyx for click in job.clicks] == [(0, 11, 10)]


def test_what_is_passed_over_and_empty_is_told(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in images.glob("oblique_*"):
        image = sitk.ReadImage(str(file))
        (empty := sitk.Image(image.GetSize(), image.GetPixelID())).CopyInformation(image)
        sitk.WriteImage(empty, str(file))
    text = json.dumps(markups([("tumour-1", sitk.ReadImage(str(images / "straight_0000.nii.gz")).GetOrigin())],
                              undefined=["tumour-2"]))  # fmt: skip
    (clicks := tmp_path / "straight.mrk.json").write_text(text.replace('"position": ""', '"position": [0, 0, 0]'))
    (tmp_path / "clicks").mkdir()
    shutil.copy(clicks, tmp_path / "clicks")
    arguments = ["-m", model, "-i", images, "-o", tmp_path / "o", "--clicks", tmp_path / "clicks", "-f", 0]
    main(["predict", *map(str, arguments), "--disable_tta", "--device", "cpu"])
    said = capsys.readouterr().out
    assert re.search(r"Warning: .*straight\.mrk\.json: 1 of its points have no position", said)
    assert re.search(r"Warning: .*oblique_0002\.nii\.gz: all voxels have the value 0", said)


def test_probabilities_are_those_of_the_segmentation(model: Path, images: Path, tmp_path: Path) -> None:
    image, output = images / "straight_0000.nii.gz", tmp_path / "o"
    predict(model, image, output, "-f", 0, "--disable_tta", "--save_probabilities")
    assert (output / "straight.npz").is_file() and (output / "straight.pkl").is_file()
    predict(model, image, output, "-f", 0, "--disable_tta")
    assert not (output / "straight.npz").exists() and not (output / "straight.pkl").exists()


def test_a_model_by_nnunets_names(model: Path, images: Path, tmp_path: Path, nnunet_paths: Path) -> None:
    shutil.copytree(model, nnunet_paths / "results" / "Dataset991_Toy" / model.name)
    image, options = images / "straight_0000.nii.gz", ["-f", "0", "--disable_tta", "-device", "cpu"]
    arguments = ["predict", "-d", "991", "-tr", "nnUNetTrainer_SAM3DFull", "-i", str(image), "-o", str(tmp_path / "o")]
    assert main([*arguments, *options]) == 0
    predict(model, image, tmp_path / "by_folder", *options[:3])
    assert np.array_equal(*(read(tmp_path / folder / "straight.nii.gz") for folder in ("o", "by_folder")))


def test_only_the_clicked_structure(model: Path, images: Path, tmp_path: Path) -> None:
    predictor = ClickPredictor(model, [0], device="cpu", mirroring=False)
    predictor.set_image_files([images / f"straight_{channel:04d}.nii.gz" for channel in range(3)])
    foreground = np.argwhere(predictor.predict() > 0)
    place = tuple(float(place) for place in foreground[len(foreground) // 2])
    clicks = [Click(place, "tumour")]
    whole, only = predictor.predict(clicks), predictor.predict(clicks, only=True)
    assert np.array_equal(only, only_clicked(whole, clicks, LABELS, predictor.spacing)[0])
    assert 0 < (only > 0).sum() < (whole > 0).sum()
    file = tmp_path / "straight.csv"
    file.write_text(f"# space = zyx\nx,y,z,label\n{','.join(map(str, place[::-1]))},tumour\n")
    predict(
        model, images / "straight_0000.nii.gz", tmp_path / "o", "--clicks", file, "--only-clicked", "-f", 0,
        "--disable_tta",
    )  # fmt: skip
    assert np.array_equal(read(tmp_path / "o" / "straight.nii.gz"), only)


def test_model_with_regions(make_network: Make, images: Path, tmp_path: Path) -> None:
    sizes = {"num_classes": 2, "in_channels": 3, **SETTINGS["network"]}
    regions = write_model(tmp_path / "regions", [make_network(**sizes)], labels=REGIONS, mirror_axes=None)
    (tmp_path / "case").mkdir()
    for channel in range(3):
        (tmp_path / "case" / f"a_{channel:04d}.nii.gz").symlink_to(images / f"straight_{channel:04d}.nii.gz")
    stock_prediction(regions, (0,), tmp_path / "case", tmp_path / "stock")
    predict(regions, tmp_path / "case", tmp_path / "ours")
    assert np.array_equal(read(tmp_path / "ours" / "a.nii.gz"), read(tmp_path / "stock" / "a.nii.gz"))
    predictor = ClickPredictor(regions, device="cpu", mirroring=False)
    predictor.set_image_files(sorted((tmp_path / "case").iterdir()))
    assert set(np.unique(predictor.predict([Click((9.0, 9.0, 9.0), "tumour")], only=True))) <= {0, 1, 2}


def test_refused_before_anything_is_computed(
    model: Path, make_network: Make, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    unsigned = {"num_classes": 3, "in_channels": 3, **SETTINGS["network"]}
    no_signs = write_model(tmp_path / "unsigned", [make_network(**unsigned)])
    no_prompts = write_model(tmp_path / "automatic", [make_network(**unsigned, prompt_encoder=False)])
    monkeypatch.setattr(ClickPredictor, "set_image", lambda *_: pytest.fail("an image was read for prediction"))
    table = tmp_path / "clicks.csv"

    def refused(line: str, *more: object, used: Path = model, given: Path = images) -> str:
        table.write_text(f"case,space,x,y,z,label,sign\nstraight,zyx,9,9,9,tumour,foreground\n{line}\n")
        arguments = [
            "predict",
            "-m",
            used,
            "-i",
            given,
            "-o",
            tmp_path / "o",
            "--clicks",
            table,
            "--device",
            "cpu",
            *more,
        ]
        assert main([str(argument) for argument in arguments]) == 1
        assert not (tmp_path / "o").exists()
        return capsys.readouterr().err

    assert "case 'nobody' among the 2 images" in refused("nobody,zyx,9,9,9,tumour,foreground")
    assert "lies outside the image" in refused("oblique,zyx,9,9,99,tumour,foreground")
    assert "has no label 'bone'" in refused("oblique,zyx,9,9,9,bone,foreground")
    background = "oblique,zyx,9,9,9,tumour,background"
    assert "plan --signed-clicks" in (message := refused(background, used=no_signs)) and str(table) in message
    assert "background clicks alone for oblique" in refused(background, "--only-clicked")
    assert "no prompt encoder" in refused("oblique,zyx,9,9,9,tumour,foreground", used=no_prompts)
    fine = "oblique,zyx,9,9,9,tumour,foreground"
    assert "fold_7" in refused(fine, "-f", 7)
    assert "takes numbers of folds" in refused(fine, "-f", "x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(fine, "--device", "cuda")
    assert "--device cuda: PyTorch" in message and "finds no such device" in message and "one of: cpu" in message
    assert "clicks.csv is a file; give a folder" in refused(fine, "-o", table)
    assert "clicks.csv is a file; give a folder" in refused(fine, "-o", table / "below")
    assert "names fold 0 twice" in refused(fine, "-f", 0, 0)
    assert "give either the folder of a trained model or a data set" in refused(fine, "-d", 991)
    assert "no folder of a trained model" in refused(fine, used=images)
    assert "does not exist; give an image" in refused(fine, given=tmp_path / "absent")
    other = tmp_path / "other"
    other.mkdir()
    write_blobs(other, "straight", case="oblique")
    assert "both called oblique" in refused(fine, "-i", images, other)
    (images / "oblique_0001.nii.gz").unlink()
    assert "absent: " in (message := refused(fine)) and "oblique_0001.nii.gz" in message


def test_the_documented_way_from_files_to_files(
    make_network: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "clicks.md").read_text(encoding="utf-8")
    arrays, files = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1:]
    sizes = {"num_classes": 3, "in_channels": 1, "signed_clicks": True, **SETTINGS["network"]}
    model = write_model(tmp_path, [make_network(**sizes)], mirror_axes=None)
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 9, (18, 22, 26)).astype(np.float32))
    image.SetOrigin((-60.0, -80.0, 100.0))
    (tmp_path / "imagesTs").mkdir()
    sitk.WriteImage(image, str(tmp_path / "imagesTs" / "case_007_0000.nii.gz"))
    positions = [("tumour-1", (-53.4, -73.3, 112.25))]
    (tmp_path / "case_007.mrk.json").write_text(json.dumps(markups(positions)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(arrays.split("predictor.set_image")[0].replace('"MODEL"', repr(str(model))), names)
    exec(files, names)
    predictor, clicks = names["predictor"], names["clicks"]
    assert [(click.label, click.sign) for click in clicks] == [("tumour", 1), ("tumour", -1)]
    assert np.allclose([click.zyx for click in clicks], [(12.25, 6.7, 6.6), (12.25, 10, 10)])
    written = sitk.ReadImage("case_007.nii.gz")
    assert written.GetOrigin() == image.GetOrigin() and written.GetSize() == image.GetSize()

    Path("clicks.csv").write_text("case,i,j,k\ncase_008,1,2,3\ncase_007,4,5,6\n")
    assert predictor.clicks_from_file("clicks.csv") == predictor.clicks_at([(4, 5, 6)], "ijk")
    assert predictor.clicks_at(np.array([[53.4, 73.3, 112.25]]), "ras", "tumour") == clicks[:1]
    with pytest.raises(ClickError, match=r"positions, for the case case_007: click 1 .* LPS lies outside.*Read as RAS"):
        predictor.clicks_at([(53.4, 73.3, 112.25)], "LPS")
    predictor.set_image(sitk.GetArrayFromImage(image), (1, 1, 1))
    assert predictor.clicks_at([(1, 2, 3)], "ijk") == [Click((3, 2, 1))]
    with pytest.raises(ClickError, match="give voxels"):
        predictor.clicks_at([(1, 2, 3)], "LPS")
    with pytest.raises(RuntimeError, match="set_image_files"):
        predictor.clicks_from_file("clicks.csv")


def test_doubts(model: Path, tmp_path: Path) -> None:
    predictor = ClickPredictor(model, device="cpu")
    place = (9.0, 9.0, 9.0)
    assert predictor.doubt([]) is predictor.doubt([Click(place), Click(place, "tumour"), Click(place, 2)]) is None
    doubt = predictor.doubt([Click(place, "organ")])
    assert doubt == "the model was trained with clicks on tumour, not on organ"
    predictor.set_image(np.random.default_rng(0).normal(100, 9, (3, 14, 15, 16)), (1, 1, 1))
    with pytest.warns(UserWarning, match="not on organ"):
        predictor.predict([Click(place, "organ")])
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["sam3d"].update(clicks="none", network=SETTINGS["network"])
    (model / "plans.json").write_text(json.dumps(plans))
    doubt = ClickPredictor(model, device="cpu").doubt([Click(place, "tumour")])
    assert doubt == "the model was trained without clicks, so that they may not help"


def test_interface_refuses(model: Path) -> None:
    predictor = ClickPredictor(model, device="cpu")
    click = Click((9.0, 9.0, 9.0), "tumour")
    with pytest.raises(RuntimeError, match="an image must be set"):
        predictor.predict([click])
    with pytest.raises(ValueError, match=r"expected an image of shape \(3, z, y, x\), got \(9, 9, 9\)"):
        predictor.set_image(np.ones((9, 9, 9)), (1, 1, 1))
    with pytest.raises(ValueError, match="three positive lengths"):
        predictor.set_image(np.ones((3, 9, 9, 9)), (1, 0, 1))
    predictor.set_image(np.random.default_rng(0).normal(100, 9, (3, 14, 15, 16)), (1, 1, 1))
    with pytest.raises(ClickError, match="outside the image of"):
        predictor.predict([Click((9.0, 9.0, 16.0), "tumour")])
    with pytest.raises(ClickError, match="there is no target 'bone'"):
        predictor.predict([Click((9.0, 9.0, 9.0), "bone")])
    with pytest.raises(ClickError, match="expected a list of Click"):
        predictor.predict([(9.0, 9.0, 9.0)])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="set_image_files"):
        predictor.write(np.zeros((14, 15, 16)), "x.nii.gz")
