"""``nnUNetv2_sam3d weights``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.commands.common import add_command, say
from nnunetv2_sam3d.settings import setting_options


def add_parser(commands: Any) -> None:
    """Adds the command and its verbs."""
    parser = add_command(
        commands,
        "weights",
        "Fetch, convert, share and inspect weights files.",
        """\
        nnUNetv2_sam3d weights fetch vit_b
        nnUNetv2_sam3d weights convert best.pth.tar -o original.pth
        nnUNetv2_sam3d weights inspect original.pth
        nnUNetv2_sam3d weights export-adapter fold_0/checkpoint_final.pth -o tumour.safetensors
        nnUNetv2_sam3d weights merge sam_vit_b_01ec64.pth tumour.safetensors -o checkpoint_final.pth
        """,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_fetch(verbs)
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
    convert.add_argument("--map-class", **setting_options()["map_class"])
    _add_force(convert)
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
    _add_export_adapter(verbs)
    _add_merge(verbs)


def _add_fetch(verbs: Any) -> None:
    fetch = add_command(
        verbs,
        "fetch",
        "Put SAM's or MedSAM's published weights where the trainers look for them.",
        """\
        nnUNetv2_sam3d weights fetch vit_b
        nnUNetv2_sam3d weights fetch medsam
        nnUNetv2_sam3d weights fetch vit_b --from /media/stick/sam_vit_b_01ec64.pth
        """,
    )
    fetch.add_argument(
        "name",
        metavar="NAME",
        help="vit_b, vit_l or vit_h for SAM's encoder of that size, or medsam; from the Hugging Face Hub, or from the "
        "mirror of it that the variable HF_ENDPOINT names",
    )
    fetch.add_argument("--from", dest="source", metavar="FILE", help="take a local file")
    fetch.set_defaults(run=run_fetch)


def _add_export_adapter(verbs: Any) -> None:
    export = add_command(
        verbs,
        "export-adapter",
        "Write what a training changed, without what its base file gave, as a small file to share.",
        """\
        nnUNetv2_sam3d weights export-adapter fold_0/checkpoint_final.pth -o tumour.safetensors
        nnUNetv2_sam3d weights export-adapter TRAINER__PLANS__3d_fullres --fold 0 -o tumour.safetensors
        """,
    )
    export.add_argument("model", metavar="MODEL", help="checkpoint of a SAM3D trainer, or folder of a trained model")
    export.add_argument("-o", "--output", required=True, metavar="FILE.safetensors")
    export.add_argument("--fold", help="which fold of the folder, if it has several")
    export.add_argument("--licence", metavar="TEXT", help="terms of the exported weights, written into the file")
    _add_force(export)
    export.set_defaults(run=run_export_adapter)


def _add_merge(verbs: Any) -> None:
    merge = add_command(
        verbs,
        "merge",
        "Put an adapter file on its base: the checkpoint it was exported from, bit for bit.",
        """\
        nnUNetv2_sam3d weights merge sam_vit_b_01ec64.pth tumour.safetensors -o model/fold_0/checkpoint_final.pth
        nnUNetv2_predict_from_modelfolder -i images -o out -m model -f 0
        """,
    )
    merge.add_argument("base", metavar="BASE", help="the file that gave what was frozen; inspect names it")
    merge.add_argument("adapter", metavar="ADAPTER", help="file of export-adapter")
    merge.add_argument("-o", "--output", required=True, metavar="CHECKPOINT")
    _add_force(merge)
    merge.set_defaults(run=run_merge)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace an existing output file")


def _check_output(options: argparse.Namespace) -> None:
    """Raises ValueError for an output that is a folder, or exists and may not be replaced."""
    output = Path(options.output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name the file to write in it with -o")
    if output.exists() and not options.force:
        raise ValueError(f"{output} exists already. Choose another name with -o, or replace it with --force.")


def run_convert(options: argparse.Namespace) -> int:
    """Converts and says what was written."""
    from nnunetv2_sam3d.weights.class_map import parse_class_map
    from nnunetv2_sam3d.weights.reading import convert

    _check_output(options)
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
        + "".join(f"; for a data set with {name!r}: channel {channel}" for name, channel in class_map.items())
    )
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Prints kind, sizes, provenance and parameter counts."""
    from nnunetv2_sam3d.weights.describe import describe

    say(describe(options.file))
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    """Fetches, saying each step."""
    from nnunetv2_sam3d.weights.fetch import fetch

    fetch(options.name, source=options.source, log=say)
    return 0


def run_export_adapter(options: argparse.Namespace) -> int:
    """Exports and says what the file needs."""
    from nnunetv2_sam3d.weights.export import export_adapter

    _check_output(options)
    metadata = export_adapter(options.model, options.output, fold=options.fold, licence=options.licence)
    base = metadata.base
    say(
        f"wrote {options.output} ({Path(options.output).stat().st_size:,} bytes): {metadata.variant}, "
        f"{metadata.adapter} adapters\nbase: {base['file']} ({base['kind']}, SHA-256 {base['sha256']})"
    )
    return 0


def run_merge(options: argparse.Namespace) -> int:
    """Merges and says where nnU-Net looks for the result."""
    from nnunetv2_sam3d.weights.export import merge

    _check_output(options)
    metadata = merge(options.base, options.adapter, options.output)
    arguments = metadata.checkpoint["init_args"]
    plans = arguments["plans"]
    say(
        f"wrote {options.output}: the weights of {metadata.trainer}, bit for bit. nnUNetv2_predict looks for it as\n"
        f"    nnUNet_results/{plans['dataset_name']}/{metadata.trainer}__{plans['plans_name']}__"
        f"{arguments['configuration']}/fold_{arguments['fold']}/checkpoint_final.pth"
    )
    return 0
