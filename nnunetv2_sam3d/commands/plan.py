"""``nnUNetv2_sam3d plan``"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_sam3d.commands.common import add_command, say
from nnunetv2_sam3d.settings import Settings, from_options, setting_options

if TYPE_CHECKING:  # what loads torch is imported where it is used
    from nnunetv2_sam3d.planning.memory_choice import Choice


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "plan",
        "Derive plans for the SAM3D trainers from nnU-Net's plans. Plans of that name are replaced and kept as .bak.",
        """\
        nnUNetv2_plan_and_preprocess -d 48 -c 3d_fullres
        nnUNetv2_sam3d plan -d 48 --patch-size 128 128 128 --spacing 1 1 1 --batch-size 1
        nnUNetv2_sam3d plan -d 48 --protocol 3dsam-adapter --batch-size 1
        nnUNetv2_sam3d plan -d 48 --gpu-memory 24
        nnUNetv2_sam3d plan -d 48 --clicks mixed --signed-clicks --click-maps --click-targets tumour
        nnUNetv2_sam3d plan -d 4 --variant vit_tiny --token-stride 2 --epochs 40 --iterations-per-epoch 50
        nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainer_SAM3DFull -p nnUNetSAM3DPlans
        """,
    )
    parser.add_argument("-d", "--dataset", required=True, help="data set name or number")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="plans to start from (default: %(default)s)")
    parser.add_argument("-o", "--name", default="nnUNetSAM3DPlans", help="name of the new plans (default: %(default)s)")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument(
        "--protocol",
        choices=("3dsam-adapter",),
        help="spacing 1 mm, patch 128 128 128 and KiTS's intensity window (clip to [-54, 247] HU, mean 59.53867, "
        "std 55.457336) as 3DSAM-adapter's authors have them; CT only, needs preprocessing",
    )
    parser.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GB",
        help="choose patch, batch size and checkpointing, as far as not given, so that training steps of DualPath and "
        "Original are predicted to fit; never more than the base plans have",
    )
    add_network_options(parser)
    parser.set_defaults(run=run)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """The options that become settings in the plans."""
    parser.add_argument("--like", metavar="FILE", help="take the sizes from a weights file instead of a variant")
    parser.add_argument("--patch-size", type=int, nargs=3, metavar=("D", "H", "W"), help="voxels")
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("D", "H", "W"), help="target spacing in mm; needs preprocessing"
    )
    parser.add_argument("--batch-size", type=int)
    for name, arguments in setting_options().items():
        parser.add_argument(f"--{name.replace('_', '-')}", **arguments)
    parser.add_argument(
        "--no-prompt-encoder", action="store_true", help="the reference's automatic network, which takes no clicks"
    )
    parser.add_argument(
        "--signed-clicks",
        action="store_true",
        help="let the network tell background clicks from foreground clicks and train it to be corrected with both; "
        "goes beyond the reference",
    )
    parser.add_argument(
        "--click-maps",
        action="store_true",
        help="show the network where the clicks are, not only what lies under them; goes beyond the reference",
    )


def run(options: argparse.Namespace) -> int:
    """Writes the plans and says what to do next."""
    from nnunetv2_sam3d.nnunet.folders import dataset_folder
    from nnunetv2_sam3d.nnunet.layout import check_paths
    from nnunetv2_sam3d.planning.plans import check_sam_checkpoint, derive_plans
    from nnunetv2_sam3d.trainers.names import evaluation_of
    from nnunetv2_sam3d.weights.reading import read_weights

    check_paths()
    settings, patch_size, batch_size = settings_from(options), options.patch_size, options.batch_size
    check_sam_checkpoint(settings)
    _check_class_map(settings, dataset_folder(options.dataset))
    if options.gpu_memory is not None:
        choice = _choice(options, settings)
        settings = replace(settings, checkpointing=choice.checkpointing)
        patch_size = patch_size if options.protocol else choice.patch_size  # a protocol has its own
        batch_size = choice.batch_size
    plan = derive_plans(
        options.dataset,
        base=options.plans,
        name=options.name,
        configuration=options.configuration,
        settings=settings,
        patch_size=patch_size,
        spacing_mm=options.spacing,
        batch_size=batch_size,
        protocol=options.protocol,
        keep_earlier=True,
    )
    say(f"wrote {plan.file}")
    if plan.kept is not None:
        say(f"  in place of other plans of that name, now {plan.kept.name}; what was not given is at its default")
    for key, value in plan.summary.items():
        say(f"  {key}: {value}")
    say(f"  clicks in training: {settings.clicks if settings.click_preset() else 'none'}")
    if options.gpu_memory is not None:
        peaks = ", ".join(f"{recipe} {peak / 1e9:.1f} GB" for recipe, peak in choice.peak.items())
        say(
            f"Predicted peak of a training step on a GPU of {options.gpu_memory:g} GB (computed, not measured): {peaks}"
        )
    if plan.preprocess:
        say(f"The data must be preprocessed for these plans:\n  {plan.preprocess} -np 2")
    else:
        say(f"The preprocessed data in {plan.data_identifier} fit, preprocessing need not be run again.")
    # what the others start from comes first; no encoder of vit_tiny is published, which Full needs none of
    first, start = "Full" if options.variant == "vit_tiny" else "Original", ""
    text = f"Train with them, first nnUNetTrainer_SAM3D{first}, which DualPath and OriginalEval start from:"
    if options.like:
        config = read_weights(options.like).config
        first, start = evaluation_of(config.adapter), f" -pretrained_weights {options.like}"  # type: ignore[union-attr]
        text = f"Evaluate {options.like} with them, or train with -tr nnUNetTrainer_SAM3DDualPath in the same way:"
    say(
        f"{text}\n  nnUNetv2_train {options.dataset} {options.configuration} 0 -tr nnUNetTrainer_SAM3D{first} "
        f"-p {options.name}{start}"
    )
    return 0


def _check_class_map(settings: Settings, folder: Path) -> None:
    """Raises ValueError if a class is mapped that the data set does not have."""
    from nnunetv2_sam3d.nnunet.descriptions import read_dataset

    file = folder / "dataset.json"
    if settings.map_class and file.is_file():
        labels = read_dataset(file, channels=False)["labels"]
        if unknown := sorted(set(settings.map_class) - set(labels)):
            raise ValueError(f"--map-class names {unknown}, {file} has the labels {sorted(labels)}")


def _choice(options: argparse.Namespace, settings: Settings) -> Choice:
    """What fits into --gpu-memory."""
    from nnunetv2_sam3d.planning.memory_choice import choose
    from nnunetv2_sam3d.planning.plans import base_sizes

    sizes = base_sizes(options.dataset, options.plans, options.configuration, options.protocol)
    config = settings.network_config(adapter="original", in_channels=sizes.in_channels, num_classes=sizes.num_classes)
    say("counting the tensors of training steps ...")
    return choose(
        config,
        options.gpu_memory,
        patch_size=options.patch_size or sizes.patch_size,
        batch_size=sizes.batch_size if options.batch_size is None else options.batch_size,
        keep_patch=bool(options.patch_size or options.protocol),
        keep_batch=options.batch_size is not None,
        checkpointing=settings.checkpointing if isinstance(settings.checkpointing, bool) else None,
    )


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings that the options describe; what is not given keeps its default."""
    if options.token_stride and len(options.token_stride) not in (1, 3):
        raise ValueError(f"--token-stride takes one number or three, got {len(options.token_stride)}")
    values = from_options(vars(options))
    if options.no_prompt_encoder:
        values["prompt_encoder"] = False
    if getattr(options, "like", None):
        if options.variant:
            raise ValueError("--like and --variant exclude each other: both choose the size of the network")
        like = _like(options.like)
        if clash := [name for name in like if name in values and values[name] != like[name]]:
            raise ValueError(
                f"{options.like} has {', '.join(f'{name} {like[name]}' for name in clash)}, which the options "
                f"contradict. Leave them out, or leave --like out"
            )
        values |= like
    for name in ("signed_clicks", "click_maps"):
        if getattr(options, name):
            values["network"] = values.get("network", {}) | {name: True}
    return Settings(**values)


def _like(file: str) -> dict[str, Any]:
    """Sizes of a weights file, as settings."""
    from nnunetv2_sam3d.weights.reading import read_weights

    weights = read_weights(file)
    if weights.config is None:
        raise ValueError(f"{weights.describe()} holds the encoder only; choose its size with --variant")
    sizes = weights.config.to_dict()
    for name in ("num_classes", "in_channels", "adapter", "token_stride", "checkpointing"):
        del sizes[name]
    plane = sizes.pop("adapter_plane")
    planes = {} if weights.config.adapter == "original" else {"adapter_plane": plane}  # original ones have none
    return {
        **{name: sizes.pop(name) for name in ("prompt_encoder", "adapter_dim")},
        **planes,
        "network": sizes,
    }
