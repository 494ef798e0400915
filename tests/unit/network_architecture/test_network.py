"""The whole network: any patch, any number of channels, points, precision, compilation, sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_sam3d.network_architecture.adapters import ADAPTERS
from nnunetv2_sam3d.network_architecture.config import VARIANTS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.prompt_encoder import sample_features
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Make = Callable[..., SAM3D]

POINTS = torch.tensor([[[3.0, 30.0, 11.0], [12.5, 8.25, 2.0], [19.0, 0.0, 17.0]]])
PATCH = (20, 37, 18)
# Parameters, published: image encoders of sam_vit_b, _l and _h.
SAM_ENCODER_PARAMETERS = {"vit_b": 89_670_912, "vit_l": 308_278_272, "vit_h": 637_026_048}


def make_image(channels: int = 1, size: tuple[int, int, int] = PATCH, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("size", "batch", "in_channels", "num_classes", "token_stride", "adapter"),
    [
        ((20, 37, 18), 2, 1, 2, (4, 4, 4), "original"),
        ((20, 37, 18), 2, 2, 5, (4, 4, 4), "dualpath"),
        ((9, 33, 40), 1, 3, 2, (2, 8, 4), "dualpath"),
        ((5, 64, 31), 1, 4, 5, (1, 16, 4), "original"),
        ((40, 8, 8), 1, 1, 2, (4, 4, 4), "dualpath"),
    ],
)
def test_any_patch(
    size: tuple[int, int, int],
    batch: int,
    in_channels: int,
    num_classes: int,
    token_stride: tuple[int, int, int],
    adapter: str,
) -> None:
    torch.manual_seed(0)
    config = replace(
        VARIANTS["vit_tiny"],
        in_channels=in_channels,
        num_classes=num_classes,
        token_stride=token_stride,
        adapter=adapter,
    )
    network = SAM3D(config)
    image = make_image(in_channels, size, batch)
    points = torch.rand(batch, 4, 3) * torch.tensor(size)
    logits = network(image, points)
    assert logits.shape == (batch, num_classes, *size)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    logits.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


def test_samples_of_a_batch_are_independent(make_network: Make) -> None:
    network, images = make_network(), make_image(batch=2)
    points = torch.cat([POINTS, POINTS.flip(1) + 1])
    with torch.no_grad():
        together = network(images, points)
        alone = torch.cat([network(images[i : i + 1], points[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_no_points_is_an_empty_list_of_points(make_network: Make, adapter: str) -> None:
    network, image = make_network(adapter=adapter), make_image(batch=2)
    with torch.no_grad():
        assert torch.equal(network(image), network(image, torch.zeros(2, 0, 3)))
        assert not torch.equal(network(image), network(image, POINTS.expand(2, -1, -1)))


def test_axis_order_and_place_of_points_matter(make_network: Make) -> None:
    network, image = make_network(), make_image()
    with torch.no_grad():
        right = network(image, POINTS)
        assert not torch.allclose(right, network(image, POINTS.flip(-1)), atol=1e-4)
        assert not torch.allclose(right, network(image, POINTS + 4), atol=1e-4)
        # a set: no order, no sign
        torch.testing.assert_close(network(image, POINTS.flip(1)), right, rtol=0, atol=1e-4)


def test_points_are_z_y_x_with_integers_at_voxel_centres() -> None:
    features = torch.randn(2, 3, 4, 6, 5)
    stride = torch.tensor([4.0, 2.0, 8.0])
    size = [16, 12, 40]
    token = torch.tensor([[2.0, 5.0, 1.0], [0.0, 3.0, 4.0]])
    points = ((token + 0.5) * stride - 0.5).expand(2, -1, -1)  # the voxel position of a token's centre
    sampled = sample_features(features, points, size)
    torch.testing.assert_close(sampled[:, 0], features[:, :, 2, 5, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(sampled[:, 1], features[:, :, 0, 3, 4], rtol=0, atol=1e-5)
    between = points[:, :1] + torch.tensor([0.0, 1.0, 0.0]) - torch.tensor([0.0, 2.0, 0.0])  # half a token back in y
    expected = (features[:, :, 2, 4, 1] + features[:, :, 2, 5, 1]) / 2
    torch.testing.assert_close(sample_features(features, between, size)[:, 0], expected, rtol=0, atol=1e-5)


def test_points_outside_the_volume_carry_nothing() -> None:
    features = torch.ones(1, 3, 4, 4, 4)
    outside = torch.tensor([[[-9.0, 8.0, 8.0], [8.0, 8.0, 30.0]]])
    assert sample_features(features, outside, [16, 16, 16]).abs().max() == 0


def test_bfloat16_features_keep_the_places_of_points() -> None:
    """bfloat16 has 8 bits: 300 and 301 would be one place."""
    line = (torch.arange(128) % 2).view(1, 1, 128, 1, 1).to(torch.bfloat16)
    points = torch.tensor([[[300.0, 1.5, 1.5], [301.0, 1.5, 1.5]]])
    sampled = sample_features(line, points, [512, 4, 4])
    assert sampled.dtype == torch.bfloat16
    assert sampled.flatten().tolist() == [0.625, 0.875]  # between tokens 74 and 75


def test_padding_repeats_the_border_and_is_cropped_away(make_network: Make) -> None:
    """20x37x18 is the corner of 20x40x20 with the border repeated; the points stay where they are."""
    network, image = make_network(), make_image()
    padded = F.pad(image, (0, 2, 0, 3, 0, 0), mode="replicate")
    assert padded.shape[2:] == (20, 40, 20)
    with torch.no_grad():
        whole = network(padded, POINTS)
        assert torch.equal(network(image, POINTS), whole[:, :, :20, :37, :18])
    assert whole.shape[2:] == (20, 40, 20)


def test_callers_tensors_are_left_alone(make_network: Make) -> None:
    network, image, points = make_network(), make_image(), POINTS.clone()
    image_before, versions = image.clone(), (image._version, points._version)
    network(image, points).sum().backward()
    assert torch.equal(image, image_before) and torch.equal(points, POINTS)
    assert (image._version, points._version) == versions


def test_decoding_after_encoding_is_the_forward_pass(make_network: Make) -> None:
    network = make_network(signed_clicks=True)
    image, signs = make_image(), torch.tensor([[1.0, -1.0, 0.0]])
    with torch.no_grad():
        features = network.encode(image)
        assert torch.equal(network.decode(features, POINTS, signs), network(image, POINTS, signs))
        assert torch.equal(network.decode(features), network(image))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (1, 8, 8, 8), (8, 8, 8), (1, 1, 8, 8)])
def test_wrong_image(make_network: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape \(B, 1, D, H, W\), got \(") as caught:
        make_network()(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3), (2, 4, 3), (1, 4, 2), (3,), (1, 1, 4, 3)])
def test_wrong_points(make_network: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected points of shape \(1, N, 3\) as \(z, y, x\) voxels") as caught:
        make_network()(make_image(), torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_points_need_a_prompt_encoder(make_network: Make) -> None:
    network, image = make_network(prompt_encoder=False), make_image()
    assert network.prompt_encoder is None
    with pytest.raises(ValueError, match="no prompt encoder .* cannot take points"):
        network(image, POINTS)
    with torch.no_grad():
        assert torch.equal(network(image, torch.zeros(1, 0, 3)), network(image))


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
@pytest.mark.parametrize("way", ["module", "autocast"])
def test_bfloat16(make_network: Make, adapter: str, way: str) -> None:
    network, image = make_network(adapter=adapter), make_image()
    with torch.no_grad():
        expected = network(image, POINTS)
        if way == "module":
            logits = network.to(torch.bfloat16)(image.to(torch.bfloat16), POINTS)
            empty = network(image.to(torch.bfloat16))
        else:
            with torch.autocast("cpu", torch.bfloat16):
                logits, empty = network(image, POINTS), network(image)
    assert logits.dtype == empty.dtype == torch.bfloat16
    assert empty.isfinite().all()
    difference = (logits.float() - expected).norm() / expected.norm()
    assert difference < 0.05, difference  # measured 0.012 to 0.016


def test_bfloat16_gradients(make_network: Make) -> None:
    network, image = make_network(adapter="dualpath"), make_image()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(image, POINTS).float().square().mean()
    loss.backward()
    assert all(
        parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all() for parameter in network.parameters()
    )


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_compiles_in_one_graph(make_network: Make, adapter: str) -> None:
    network, image = make_network(adapter=adapter), make_image()
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        for points in (None, POINTS):
            torch.testing.assert_close(compiled(image, points), network(image, points), rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_checkpointing_changes_no_gradient(make_network: Make, adapter: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = make_network(adapter=adapter, checkpointing=checkpointing)
        network(make_image(), POINTS).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
@pytest.mark.parametrize("prompt_encoder", [True, False])
def test_every_parameter_gets_a_gradient_without_points(make_network: Make, adapter: str, prompt_encoder: bool) -> None:
    """DistributedDataParallel stops at a parameter that gets none."""
    network = make_network(adapter=adapter, prompt_encoder=prompt_encoder)
    network(make_image()).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    # a key's bias adds the same to all logits of a softmax; nothing else may be without effect
    idle = [name for name, parameter in network.named_parameters() if parameter.grad.abs().max() == 0]
    assert [name for name in idle if not name.endswith("k_proj.bias")] == []


def test_inference_mode_leaves_nothing_that_training_cannot_use(make_network: Make) -> None:
    """nnU-Net predicts in inference mode; tables that are kept from there must not break a later training step."""
    network = make_network(adapter="dualpath")
    image = make_image(size=(44, 12, 36))  # a grid that no other test has made tables for
    with torch.inference_mode():
        expected = network(image, POINTS).clone()
    logits = network(image, POINTS)
    logits.square().mean().backward()
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_state_dict_has_only_what_is_learned(make_network: Make) -> None:
    network = make_network(adapter="dualpath")
    parameters = {name for name, _ in network.named_parameters()}
    factors = {f"encoder.blocks.{block}.attn.lr" for block in range(4)}
    planes = {f"encoder.blocks.{block}.adapter.published_plane" for block in range(4)}
    assert set(network.state_dict()) == parameters | factors | planes


def test_prepared_grid_changes_no_result(make_network: Make) -> None:
    network, image = make_network(), make_image()
    names = list(network.state_dict())
    with torch.no_grad():
        expected, other = network(image, POINTS), network(image[:, :, :8], POINTS)
        network.prepare(PATCH)
        assert torch.equal(network(image, POINTS), expected)
        assert torch.equal(network(image[:, :, :8], POINTS), other)  # a grid that was not prepared
        assert network.to(torch.bfloat16)(image.to(torch.bfloat16), POINTS).isfinite().all()
    assert list(network.state_dict()) == names


def test_only_the_last_convolution_depends_on_the_classes(make_network: Make) -> None:
    two, five = make_network(num_classes=2).state_dict(), make_network(num_classes=5).state_dict()
    different = [name for name in two if two[name].shape != five[name].shape]
    assert different == ["mask_decoder.seg_layers.0.weight"]
    assert all(".seg_layers." in name for name in different)  # what nnU-Net's -pretrained_weights skips


@pytest.mark.parametrize("in_channels", [2, 3, 4])
def test_no_weight_depends_on_the_channels(make_network: Make, in_channels: int) -> None:
    one, more = make_network().state_dict(), make_network(in_channels=in_channels).state_dict()
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in more.items()}


def test_decoder_sees_the_mean_of_the_channels(make_network: Make) -> None:
    network = make_network(in_channels=2)
    taps = [torch.randn(1, 16, 4, 4, 4) for _ in range(4)]
    image = make_image(2, (16, 16, 16))
    with torch.no_grad():
        gray = network.mask_decoder(list(taps), image.mean(1, keepdim=True))
        torch.testing.assert_close(network.mask_decoder(list(taps), image), gray)


def test_positions_of_the_native_grid_are_the_tables(make_network: Make) -> None:
    encoder = make_network().encoder
    table = encoder.pos_embed[0]  # (8, 8, C) for a grid of 4
    pooled = (table[0::2, 0::2] + table[0::2, 1::2] + table[1::2, 0::2] + table[1::2, 1::2]) / 4
    expected = pooled[None] + encoder.depth_embed[0, :, None, None]
    torch.testing.assert_close(encoder.positions((4, 4, 4))[0], expected)


def test_positions_of_another_grid_are_interpolated(make_network: Make) -> None:
    encoder = make_network().encoder
    with torch.no_grad():
        native, larger = encoder.positions((4, 4, 4)), encoder.positions((8, 5, 6))
    expected = F.interpolate(native.movedim(-1, 1), size=(8, 5, 6), mode="trilinear", align_corners=False)
    torch.testing.assert_close(larger, expected.movedim(1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "embed_dim", "depth", "heads", "global_indexes"),
    [
        ("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        ("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        ("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    ],
)
def test_published_sizes(variant: str, embed_dim: int, depth: int, heads: int, global_indexes: tuple[int, ...]) -> None:
    with torch.device("meta"):
        encoder = SAM3D(VARIANTS[variant]).encoder
    assert len(encoder.blocks) == depth and len(encoder.neck_3d) == 4
    for index, block in enumerate(encoder.blocks):
        assert block.attn.num_heads == heads
        rows = 127 if index in global_indexes else 27
        assert block.attn.rel_pos_d.shape == block.attn.rel_pos_h.shape == (rows, embed_dim // heads)
        assert block.attn.qkv.weight.shape == (3 * embed_dim, embed_dim)
        assert block.mlp.lin1.weight.shape == (4 * embed_dim, embed_dim)
        assert block.norm1.eps == block.norm2.eps == 1e-6
        assert block.shifted == (index % 2 == 0)
    ours = ("adapter", "rel_pos_d", "neck_3d", "depth_embed", "slice_embed")  # not in SAM
    trunk = sum(parameter.numel() for name, parameter in encoder.named_parameters() if not any(o in name for o in ours))
    neck = 256 * embed_dim + 9 * 256 * 256 + 4 * 256  # in SAM, not here
    assert trunk + neck == SAM_ENCODER_PARAMETERS[variant]


def test_vit_b_has_the_names_and_shapes_of_segment_anything() -> None:
    build = pytest.importorskip("segment_anything").sam_model_registry["vit_b"]
    with torch.device("meta"):
        theirs = build().image_encoder.state_dict()
        ours = SAM3D(VARIANTS["vit_b"]).encoder.state_dict()
    theirs = {name: value.shape for name, value in theirs.items() if not name.startswith("neck.")}
    ours = {name.removeprefix("stem."): value.shape for name, value in ours.items()}
    added = ("adapter", "rel_pos_d", "attn.lr", "neck_3d", "depth_embed", "slice_embed")
    assert theirs == {name: shape for name, shape in ours.items() if not any(part in name for part in added)}


def test_norms_of_the_prompt_encoder_and_the_encoder_differ(make_network: Make) -> None:
    network = make_network()
    assert {norm.eps for norm in network.prompt_encoder.modules() if isinstance(norm, torch.nn.LayerNorm)} == {1e-5}
    assert {getattr(norm, "eps", None) for neck in network.encoder.neck_3d for norm in (neck[1], neck[3])} == {1e-6}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": 6}, "depth must be a multiple of 4"),
        ({"embed_dim": 30, "num_heads": 4}, "embed_dim 30 is not divisible by num_heads 4"),
        ({"adapter_dim": 0}, "adapter_dim must be a whole number of at least 1, got 0"),
        ({"out_channels": 24}, "out_channels must be a multiple of 16"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"depth": 4.0}, "depth must be a whole number"),
        ({"token_stride": (4, 4)}, "token_stride must be one or three"),
        ({"token_stride": 3}, "token_stride must be one or three"),
    ],
)
def test_impossible_sizes(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAM3DConfig(**sizes)


def test_unknown_adapter() -> None:
    with pytest.raises(ValueError, match="adapter must be one of .*'lora'"), torch.device("meta"):
        SAM3D(SAM3DConfig(adapter="lora"))


def test_config_survives_json(make_network: Make) -> None:
    import json

    config = make_network(token_stride=(2, 4, 8), adapter_dim=7).config
    assert SAM3DConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"unknown network settings \['width'\]"):
        SAM3DConfig.from_dict({"width": 3})


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("patch", [(4, 4, 8), (4, 8, 8), (4, 8, 4), (8, 4, 4), (4, 4, 12), (8, 4, 8), (1, 16, 2)])
def test_accepted_patches_work(make_network: Make, adapter: str, patch: tuple[int, int, int]) -> None:
    """What the check of the patch size lets pass, the network can do; the smallest grids included."""
    network = make_network(adapter=adapter).train()
    network.config.check_patch_size(patch)
    logits = network(make_image(size=patch))
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.encoder.blocks.parameters())


@pytest.mark.parametrize("patch", [(4, 4, 4), (1, 1, 1), (64, 64), (0, 8, 8), (8.5, 8, 8)])
def test_refused_patches(make_network: Make, patch: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="too few to normalise over|three positive voxel counts"):
        make_network().config.check_patch_size(patch)
