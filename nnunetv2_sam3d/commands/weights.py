"""``nnUNetv2_sam3d weights``"""

from __future__ import annotations

import argparse
from typing import Any

from nnunetv2_sam3d.commands.common import add_class_map, add_command, say


def add_parser(commands: Any) -> None:
    """Adds the command and its verbs."""
    parser = add_command(
        commands,
        "weights",
        "Convert and inspect weights files.",
        """\
        nnUNetv2_sam3d weights convert best.pth.tar -o original.pth
        nnUNetv2_sam3d weights inspect original.pth
        """,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    convert = add_command(
        verbs,
        "convert",
        "Convert a 3DSAM-adapter checkpoint, one of ours or SAM's encoder for -pretrained_weights.",
        """\
        nnUNetv2_sam3d weights convert best.pth.tar -o original.pth
        nnUNetv2_sam3d weights convert best.pth.tar -o original.pth --map-class tumour=1
        nnUNetv2_sam3d weights convert model.safetensors -o sam_encoder.pth
        nnUNetv2_train 48 3d_fullres 0 -tr nnUNetTrainer_SAM3DDualPath -pretrained_weights original.pth
        """,
    )
    convert.add_argument(
        "source",
        metavar="SRC",
        help="best.pth.tar or last.pth.tar of 3DSAM-adapter, a checkpoint of a "
        "SAM3D trainer, or SAM's or MedSAM's weights (.pth, model.safetensors, pytorch_model.bin)",
    )
    convert.add_argument("-o", "--output", required=True, metavar="OUT.pth")
    convert.add_argument("--automatic", action="store_true", help="leave the prompt encoder out")
    add_class_map(convert)
    convert.set_defaults(run=run_convert)
    inspect = add_command(
        verbs,
        "inspect",
        "Say what a weights file holds and where its parts came from.",
        """\
        nnUNetv2_sam3d weights inspect fold_0/checkpoint_final.pth
        """,
    )
    inspect.add_argument("file", metavar="FILE")
    inspect.set_defaults(run=run_inspect)


def run_convert(options: argparse.Namespace) -> int:
    """Converts and says what was written."""
    from nnunetv2_sam3d.weights import convert
    from nnunetv2_sam3d.weights.classes import parse_class_map

    class_map = parse_class_map(options.map_class or [])
    metadata = convert(options.source, options.output, automatic=options.automatic, class_map=class_map)
    network = metadata["network"]
    if network is None:
        say(f"wrote {options.output}: SAM's image encoder. Train with it: -pretrained_weights {options.output}")
        return 0
    prompt = "with prompt encoder" if network["prompt_encoder"] else "automatic, without prompt encoder"
    say(
        f"wrote {options.output}: width {network['embed_dim']}, {network['depth']} blocks, {network['adapter']} "
        f"adapters, {network['num_classes']} classes, {prompt}"
    )
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Prints kind, sizes, provenance and parameter counts."""
    from nnunetv2_sam3d.weights.inspect import describe

    say(describe(options.file))
    return 0
