"""Recipes, schedule and loss, without nnU-Net's trainer around them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.losses import DiceCELoss
from nnunetv2_sam3d.trainers.names import (
    SHORT_NAMES,
    STUDIES,
    evaluation_of,
    full_name,
    ordered,
    recipe_of,
    short_name,
    study_arms,
)
from nnunetv2_sam3d.trainers.recipes import (
    DUALPATH,
    FULL,
    ORIGINAL,
    ORIGINAL_CONTINUED,
    ORIGINAL_EVAL,
    Recipe,
    apply_freezing,
    clip_groups,
    select,
)
from nnunetv2_sam3d.trainers.recipes import RECIPES as ALL_RECIPES
from nnunetv2_sam3d.trainers.schedule import LinearDecay, adamw

MakeNetwork = Callable[..., SAM3D]
RECIPES = {"original": ORIGINAL, "dualpath": DUALPATH, "full": FULL, "original_eval": ORIGINAL_EVAL}
with_each_recipe = pytest.mark.parametrize("kind", RECIPES)


def trained_by_design(name: str, kind: str) -> bool:
    """The table of the design's section 1, from its words."""
    part, *rest = name.split(".")
    if kind == "original_eval":
        return False
    if kind == "full":
        return True
    if part in ("prompt_encoder", "mask_decoder"):
        return kind == "original"
    assert part == "encoder"
    if rest[0] in ("depth_embed", "neck_3d"):
        return True
    if rest[0] == "stem":
        return rest[1] == "slice_embed"
    if rest[0] == "blocks":
        return rest[2] in ("adapter", "norm1", "norm2") or rest[-1] == "rel_pos_d"
    assert rest == ["pos_embed"]
    return False


@with_each_recipe
@pytest.mark.parametrize("prompt_encoder", [True, False])
def test_recipe_trains_what_the_design_says(kind: str, prompt_encoder: bool, make_network: MakeNetwork) -> None:
    recipe = RECIPES[kind]
    network = make_network(adapter=recipe.adapter, prompt_encoder=prompt_encoder)
    groups = apply_freezing(network, recipe)
    expected = {name for name, _ in network.named_parameters() if trained_by_design(name, kind)}
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == expected
    in_groups = [id(parameter) for group in groups for parameter in group]
    assert len(in_groups) == len(set(in_groups))
    assert set(in_groups) == {id(network.get_parameter(name)) for name in expected}


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h", "vit_tiny"])
def test_every_pattern_fits_every_variant(variant: str) -> None:
    from nnunetv2_sam3d.network_architecture.config import VARIANTS

    for kind, recipe in RECIPES.items():
        with torch.device("meta"):
            network = SAM3D(replace(VARIANTS[variant], adapter=recipe.adapter))
        apply_freezing(network, recipe)
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in network.named_parameters() if trained_by_design(name, kind)}
        if trained:
            assert clip_groups(network, recipe)


def test_dualpath_adapters_are_trained_as_a_whole(make_network: MakeNetwork) -> None:
    network = make_network(adapter="dualpath")
    apply_freezing(network, DUALPATH)
    parts = {"linear1", "global_conv", "local_unetpp", "fusion_gate", "linear2"}
    for block in network.encoder.blocks:
        assert {name.split(".")[0] for name, _ in block.adapter.named_parameters()} == parts
        assert all(parameter.requires_grad for parameter in block.adapter.parameters())


@with_each_recipe
def test_number_of_groups(kind: str, make_network: MakeNetwork) -> None:
    recipe = RECIPES[kind]
    with_prompts = {"original": 3, "dualpath": 1, "full": 3, "original_eval": 0}[kind]
    assert len(apply_freezing(make_network(adapter=recipe.adapter), recipe)) == with_prompts
    without = {"original": 2, "dualpath": 1, "full": 2, "original_eval": 0}[kind]
    network = make_network(adapter=recipe.adapter, prompt_encoder=False)
    assert len(apply_freezing(network, recipe)) == without


def test_a_pattern_that_fits_nothing_is_an_error(make_network: MakeNetwork) -> None:
    network = make_network()
    with pytest.raises(ValueError, match=r"encoder\.renamed.*fits no parameter"):
        apply_freezing(network, Recipe(adapter="original", groups=(("encoder.*", "encoder.renamed"),)))
    apply_freezing(network, FULL)
    with pytest.raises(ValueError, match="fits no parameter"):
        clip_groups(network, Recipe(adapter="original", groups=(), clip_groups=(("mask_decoder.nothing.*",),)))
    with pytest.raises(ValueError, match="fits no parameter"):
        select(["a.b", "c"], ["a.*", "d"])


def test_only_the_absent_prompt_encoder_may_fit_nothing(make_network: MakeNetwork) -> None:
    network = make_network(prompt_encoder=False)
    apply_freezing(network, ORIGINAL)
    with pytest.raises(ValueError, match="fits no parameter"):
        apply_freezing(network, Recipe(adapter="original", groups=(("encoder.*",), ("decoder.*",))))


def test_overlapping_groups_are_an_error(make_network: MakeNetwork) -> None:
    with pytest.raises(ValueError, match="overlap"):
        apply_freezing(make_network(), Recipe(adapter="original", groups=(("encoder.*",), ("encoder.pos_embed",))))


@pytest.mark.parametrize("kind", ["original", "dualpath", "full"])
def test_clip_groups(kind: str, make_network: MakeNetwork) -> None:
    recipe = RECIPES[kind]
    network = make_network(adapter=recipe.adapter)
    apply_freezing(network, recipe)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group} for group in clip_groups(network, recipe)]
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if kind == "dualpath":
        assert groups == [{name for name in trained if ".adapter." in name}]
    else:
        parts = ("encoder.", "mask_decoder.", "prompt_encoder.")
        assert sorted(map(sorted, groups)) == sorted(sorted(n for n in trained if n.startswith(p)) for p in parts)
    assert recipe.max_grad_norm == 1.0


def test_adamw_is_torchs_and_raises_versions() -> None:
    """Bit for bit, for gradients in any memory order; what is cached from weights depends on their versions."""
    weights = [torch.randn(5, 7), torch.randn(7), torch.randn(3, 1, 3, 3, 3)]
    theirs, ours = ([torch.nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))
    steps = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, foreach=False), adamw([ours[:1], ours[1:]], 1e-2, 0.1)
    for number in range(5):
        versions = [parameter._version for parameter in ours]
        for pair in zip(theirs, ours, strict=True):
            gradient = torch.randn(pair[0].shape)
            pair[0].grad, pair[1].grad = gradient, gradient.movedim(0, -1).contiguous().movedim(-1, 0)
        for step in steps:
            step.step()
        assert all(torch.equal(*pair) for pair in zip(theirs, ours, strict=True)), number
        assert all(p._version > before for p, before in zip(ours, versions, strict=True))


def test_learning_rate_is_that_of_torchs_linear_schedule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.AdamW([parameter], lr=4e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(theirs, start_factor=1.0, end_factor=0.01, total_iters=500)
    ours = torch.optim.AdamW([{"params": [parameter]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=4e-4)
    decay = LinearDecay(ours, 4e-4, 500)
    for epoch in range(503):
        decay.step(epoch)
        expected = pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
        assert [group["lr"] for group in ours.param_groups] == [expected, expected]
        if epoch in (0, 250, 499):  # by hand, too
            assert expected == 4e-4 * (1 - 0.99 * epoch / 500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no optimizer step between
            schedule.step()


def test_learning_rate_does_not_depend_on_earlier_epochs() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    decay = LinearDecay(optimizer, 1.0, 100)
    for epoch in (70, 3, 70):
        decay.step(epoch)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 - 0.99 * 0.7)


def labels(*, regions: bool = False, ignore: bool = False) -> LabelManager:
    content = {"background": 0, "organ": [1, 2], "tumour": 2} if regions else {"background": 0, "a": 1, "b": 2}
    return LabelManager(content | ({"ignore": 3} if ignore else {}), [1, 2] if regions else None)


def dice_loss(probability: Tensor, target: Tensor, batch_dice: bool) -> Tensor:
    """1 - mean Dice; both (B, C, D, H, W)."""
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    overlap, size = (probability * target).sum(axes), (probability + target).sum(axes)
    return 1 - ((2 * overlap + 1e-5) / (size + 1e-5)).mean()


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignore", [True, False])
def test_loss_of_labels(batch_dice: bool, ignore: bool) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 3, 4, 5, 6)
    target = torch.randint(0, 4 if ignore else 3, (2, 1, 4, 5, 6))
    counted = (target < 3).float()
    wanted = F.one_hot(target[:, 0], 4).movedim(-1, 1)[:, 1:3].float()
    dice = dice_loss(logits.softmax(1)[:, 1:] * counted, wanted * counted, batch_dice)
    ce = F.cross_entropy(logits, target[:, 0], ignore_index=3 if ignore else -100)
    loss = DiceCELoss(labels(ignore=ignore), batch_dice)
    assert loss.train()(logits, target.float()).item() == pytest.approx((0.5 * dice + 0.5 * ce).item(), rel=1e-5)
    assert loss.eval()(logits, target.float()).item() == pytest.approx(dice.item(), rel=1e-5)


@pytest.mark.parametrize("ignore", [True, False])
def test_loss_of_regions(ignore: bool) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 2, 4, 5, 6)
    wanted = torch.rand(2, 2, 4, 5, 6) < 0.4
    ignored = torch.rand(2, 1, 4, 5, 6) < 0.3
    counted = (~ignored if ignore else torch.ones_like(ignored)).float()
    dice = dice_loss(logits.sigmoid() * counted, wanted * counted, False)
    bce = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none")
    bce = (bce * counted).sum() / (counted.sum() * (1 if ignore else 2))  # nnU-Net's mean over voxels, then over both
    target = torch.cat([wanted, ignored], 1) if ignore else wanted.float()
    loss = DiceCELoss(labels(regions=True, ignore=ignore), False)
    assert loss.train()(logits, target).item() == pytest.approx((0.5 * dice + 0.5 * bce).item(), rel=1e-5)
    assert loss.eval()(logits, target).item() == pytest.approx(dice.item(), rel=1e-5)


def test_loss_of_a_perfect_result_is_zero_and_of_an_empty_one_is_not() -> None:
    target = torch.zeros(1, 1, 4, 4, 4)
    target[:, :, 1:3] = 1
    target[:, :, 3] = 2
    perfect = 40 * F.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()
    loss = DiceCELoss(labels(), False)
    assert loss.train()(perfect, target).item() == pytest.approx(0, abs=1e-5)
    assert loss.eval()(perfect, target).item() == pytest.approx(0, abs=1e-5)
    background = torch.zeros_like(perfect)
    background[:, 0] = 40
    assert loss.eval()(background, target).item() == pytest.approx(1, abs=1e-3)


def test_ignored_voxels_get_no_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (1, 1, 4, 4, 4)).float()
    target[:, :, 2:] = 3
    DiceCELoss(labels(ignore=True), False).train()(logits, target).backward()
    assert logits.grad is not None
    assert logits.grad[:, :, 2:].abs().max() == 0
    assert logits.grad[:, :, :2].abs().min() > 0


def test_the_deciding_control_differs_from_dualpath_in_the_adapter_alone() -> None:
    one, other = DUALPATH, ORIGINAL_CONTINUED
    different = {field.name for field in fields(Recipe) if getattr(one, field.name) != getattr(other, field.name)}
    assert different == {"adapter", "control", "question", "asks_about"}
    assert DUALPATH.control == "OriginalContinued"


def test_every_arm_that_starts_from_another_declares_a_control_that_there_is() -> None:
    for short, recipe in ALL_RECIPES.items():
        assert recipe.question, short
        if recipe.groups and recipe.starts_from:
            assert recipe.control in ALL_RECIPES, short


def test_ablations_change_one_thing() -> None:
    for short, recipe in ALL_RECIPES.items():
        if recipe.control == "DualPath":
            changed = {f.name for f in fields(Recipe) if getattr(DUALPATH, f.name) != getattr(recipe, f.name)}
            assert len(changed - {"control", "question"}) == 1, short


@pytest.mark.parametrize("short", ALL_RECIPES)
def test_trained_parameters_of_every_arm(short: str, make_network: MakeNetwork) -> None:
    recipe = ALL_RECIPES[short]
    network = make_network(adapter=recipe.adapter)
    apply_freezing(network, recipe)
    if recipe.starts_from and recipe.groups:
        expected = {name for name, _ in network.named_parameters() if trained_by_design(name, "dualpath")}
        assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == expected


def test_names() -> None:
    assert full_name("DualPath") == "nnUNetTrainer_SAM3DDualPath"
    assert full_name("nnUNetTrainer") == short_name("nnUNetTrainer") == "nnUNetTrainer"
    assert all(short_name(full) == short for short, full in SHORT_NAMES.items())
    assert recipe_of("nnUNetTrainer_SAM3DDualPath") is recipe_of("DualPath") is DUALPATH
    assert recipe_of("TimeBudget") is None
    assert ordered(["nnUNetTrainer", "DualPath", "Full"]) == [full_name("Full"), full_name("DualPath"), "nnUNetTrainer"]
    with pytest.raises(ValueError, match="named twice"):
        ordered(["DualPath", "nnUNetTrainer_SAM3DDualPath"])


def test_studies_hold_the_controls_of_their_arms() -> None:
    assert all(arm in ALL_RECIPES for arms in STUDIES.values() for arm in arms)
    arms = study_arms(["controls", "paths"], "Full")
    assert arms[0] == "Full" and "Original" not in arms and len(arms) == len(set(arms))
    for arm in arms:
        assert ALL_RECIPES[arm].control in (None, *arms), arm


def test_each_adapter_names_the_trainer_that_takes_its_models() -> None:
    assert [evaluation_of(name) for name in ("original", "dualpath", "dualpath_fft", "dualpath_no_gate")] == [
        "OriginalEval",
        "DualPathEval",
        "DualPathFFTEval",
        "DualPathNoGate",  # nothing validates it alone
    ]
