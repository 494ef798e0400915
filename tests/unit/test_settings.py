"""Settings in the plans: defaults, refusals, and the way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nnunetv2_sam3d.clicks.presets import click_training
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.settings import PLANS_KEY, Settings


def network_of(settings: Settings) -> SAM3DConfig:
    return settings.network_config(adapter="dualpath", in_channels=1, num_classes=2)


def test_stock_plans_get_the_reference() -> None:
    settings = Settings.from_plans({"patch_size": [128, 128, 128], "spacing": [1.0, 1.0, 1.0]})
    assert settings == Settings()
    assert (settings.variant, settings.epochs, settings.initial_lr) == ("vit_b", 500, 4e-4)
    assert (settings.iterations_per_epoch, settings.val_iterations_per_epoch) == (250, 50)
    network = network_of(settings)
    assert (network.embed_dim, network.depth, network.num_heads) == (768, 12, 12)
    assert network.token_stride == (4, 4, 4)
    assert network.bottleneck == 384
    assert network.prompt_encoder and not network.checkpointing
    assert settings.sam_checkpoint is None


def test_network_has_the_trainers_and_the_datas_part() -> None:
    network = Settings(variant="vit_tiny").network_config(adapter="original", in_channels=4, num_classes=3)
    assert (network.adapter, network.in_channels, network.num_classes) == ("original", 4, 3)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(variant="vit_h", token_stride=(2, 4, 8), adapter_dim=48, prompt_encoder=False, checkpointing=True),
        Settings(
            variant="vit_tiny",
            network={"embed_dim": 48, "global_attn_indexes": [1]},
            token_stride=8,
            epochs=3,
            iterations_per_epoch=2,
            val_iterations_per_epoch=1,
            initial_lr=1e-3,
            sam_checkpoint="~/sam.pth",
            mirror_axes=(0, 2),
        ),
        Settings(mirror_axes=()),
        Settings(clicks="none"),
        Settings(repeat=3),
        Settings(automatic_share=0.25, max_clicks=5, click_targets=("tumour", "2")),
        Settings(network={"signed_clicks": True, "click_maps": True}),
    ],
)
def test_way_through_the_plans(settings: Settings) -> None:
    plans = json.loads(json.dumps({PLANS_KEY: settings.to_dict(), "patch_size": [64, 64, 64]}))
    again = Settings.from_plans(plans)
    assert again == settings
    assert network_of(again) == network_of(settings)


def test_only_what_was_chosen_is_written() -> None:
    assert Settings().to_dict() == {"variant": "vit_b"}
    assert Settings(variant="vit_tiny", epochs=3).to_dict() == {"variant": "vit_tiny", "epochs": 3}
    assert Settings(token_stride=(4, 4, 8)).to_dict()["token_stride"] == [4, 4, 8]


def test_sizes_of_the_network_can_be_changed() -> None:
    network = network_of(Settings(variant="vit_tiny", network={"embed_dim": 48}, token_stride=(2, 4, 4)))
    assert (network.embed_dim, network.bottleneck, network.depth) == (48, 24, 4)
    assert network.token_stride == (2, 4, 4)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown settings \['epoch', 'learning_rate'\].*known: .*'epochs'"):
        Settings.from_plans({PLANS_KEY: {"learning_rate": 1e-3, "epoch": 3, "variant": "vit_b"}})


def test_unknown_sizes_of_the_network_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown network settings \['width'\]"):
        network_of(Settings(network={"width": 48}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("variant", "vit_g", "unknown variant 'vit_g'.*vit_b"),
        ("token_stride", 3, "token_stride must be one or three"),
        ("token_stride", [4, 4], "token_stride must be one or three"),
        ("token_stride", [4, 4, 5], "token_stride must be one or three"),
        ("token_stride", 0, "token_stride must be one or three"),
        ("epochs", 0, "epochs must be a whole number of at least 1, got 0"),
        ("epochs", 2.5, "epochs must be a whole number of at least 1, got 2.5"),
        ("epochs", "10", "epochs must be a whole number of at least 1, got '10'"),
        ("continued_epochs", 0, "continued_epochs must be a whole number of at least 1, got 0"),
        ("iterations_per_epoch", -1, "iterations_per_epoch must be a whole number of at least 1, got -1"),
        ("val_iterations_per_epoch", 0, "val_iterations_per_epoch must be a whole number of at least 1, got 0"),
        ("initial_lr", 0, "initial_lr must lie between 0 and 1, got 0"),
        ("initial_lr", -1e-4, "initial_lr must lie between 0 and 1"),
        ("initial_lr", float("nan"), "initial_lr must lie between 0 and 1"),
        ("initial_lr", 4, "initial_lr must lie between 0 and 1, got 4"),
        ("max_seconds", 0, "max_seconds must be positive, got 0"),
        ("mirror_axes", [0, 3], "mirror_axes must be some of 0, 1, 2"),
        ("mirror_axes", [1, 1], "mirror_axes must be some of 0, 1, 2"),
        ("mirror_axes", True, "mirror_axes must be some of 0, 1, 2"),
        ("max_seconds", -60.0, "max_seconds must be positive, got -60.0"),
        ("precision", "fp16", "precision must be one of .*'fp16'"),
        ("precision", None, "precision must be one of .*None"),
        ("clicks", "many", r"clicks must be one of \['mixed', 'reference', 'none'\], got 'many'"),
        ("clicks", None, "clicks must be one of .*None"),
        ("clicks", ["mixed"], "clicks must be one of "),
        ("automatic_share", 1.0, r"automatic_share must be at least 0 and less than 1, got 1.0 \(clicks \"none\""),
        ("automatic_share", -0.1, "automatic_share must be at least 0"),
        ("automatic_share", float("nan"), "automatic_share must be at least 0"),
        ("automatic_share", "half", "automatic_share must be at least 0"),
        ("automatic_share", True, "automatic_share must be at least 0"),
        ("max_clicks", 0, "max_clicks must be a whole number of at least 1, got 0"),
        ("max_clicks", 2.5, "max_clicks must be a whole number of at least 1, got 2.5"),
        ("click_targets", [], "click_targets must be names of labels or regions"),
        ("click_targets", "tumour", "click_targets must be names of labels or regions, got 'tumour'"),
        ("click_targets", [2], "click_targets must be names of labels or regions"),
    ],
)
def test_impossible_values(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_plans({PLANS_KEY: {key: value}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clicks": "reference", "max_clicks": 3}, "max_clicks can be chosen with clicks \"mixed\" only.*'reference'"),
        ({"clicks": "none", "automatic_share": 0.1}, "automatic_share can be chosen with clicks \"mixed\" only"),
        ({"clicks": "none", "network": {"signed_clicks": True, "click_maps": True}},
         "signed_clicks and click_maps would never be trained with clicks \"none\""),
        ({"clicks": "reference", "network": {"signed_clicks": True}}, "signed_clicks needs clicks \"mixed\""),
    ],
)  # fmt: skip
def test_click_settings_that_exclude_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_plans({PLANS_KEY: settings})


def test_how_clicks_are_simulated() -> None:
    assert Settings().click_preset() == click_training("mixed")
    assert Settings(automatic_share=0.1).click_preset() == click_training("mixed", automatic_share=0.1)
    assert Settings(clicks="none").click_preset() is None
    assert Settings(prompt_encoder=False).click_preset() is None  # such a network takes no clicks
    assert not Settings(network={"click_maps": True}).signed_clicks
    assert Settings(network={"signed_clicks": True}).signed_clicks
    with pytest.raises(ValueError, match="signed_clicks needs a prompt encoder"):
        network_of(Settings(prompt_encoder=False, network={"signed_clicks": True}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("token_stride", 4.0),
        ("token_stride", None),
        ("token_stride", [4.0, 4.0, 4.0]),
        ("max_seconds", "1h"),
        ("initial_lr", "4e-4"),
        ("prompt_encoder", "false"),
        ("checkpointing", "no"),
        ("adapter_dim", 0),
        ("adapter_dim", 2.5),
        ("variant", ["vit_b"]),
        ("network", ["embed_dim"]),
    ],
)
def test_values_of_the_wrong_type_are_named(key: str, value: Any) -> None:
    """Plans are edited by hand: a mistake in the JSON must not become a traceback from somewhere else, or be obeyed."""
    with pytest.raises(ValueError, match=key):
        network_of(Settings.from_plans({PLANS_KEY: {key: value}}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapter_dim", 8),
        ("token_stride", [8, 8, 8]),
        ("prompt_encoder", False),
        ("num_classes", 7),
        ("adapter", "original"),
    ],
)
def test_sizes_that_are_decided_elsewhere_are_not_dropped_in_silence(key: str, value: Any) -> None:
    """``network`` may not hold what a setting of its own, the trainer or the data set decides."""
    try:
        network = network_of(Settings(variant="vit_tiny", network={key: value}))
    except ValueError as error:
        assert key in str(error)
    else:
        assert network.to_dict()[key] == value
