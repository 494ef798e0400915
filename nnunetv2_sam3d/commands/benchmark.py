"""``nnUNetv2_sam3d benchmark``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.benchmark.case import FORMS, PRECISIONS, TRAINED, WHAT
from nnunetv2_sam3d.commands.common import add_command, say
from nnunetv2_sam3d.network_architecture.config import VARIANTS


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "benchmark",
        "Measure time and memory of the network on this machine, each case in a fresh process, against its plain form "
        "and against the machine's own speed. Stopped and started again with the same --json, it goes on where it was.",
        """\
        nnUNetv2_sam3d benchmark --variant vit_tiny --patch-size 64 64 64
        nnUNetv2_sam3d benchmark --depth 4 --what forward step --form ours plain --precision float32 bfloat16
        nnUNetv2_sam3d benchmark --what forward --form ours plain --json vit_b.json --plot vit_b.svg
        nnUNetv2_sam3d benchmark --what step --recipe DualPath Original Full --checkpointing off on --json step.json
        nnUNetv2_sam3d benchmark --what forward --patch-size 96 96 96 --patch-size 192 192 192
        """,
    )
    parser.add_argument(
        "--variant", nargs="+", choices=sorted(VARIANTS), default=["vit_b"], help="size of the network (default: vit_b)"
    )
    parser.add_argument(
        "--patch-size",
        type=int,
        nargs=3,
        action="append",
        metavar=("D", "H", "W"),
        help="voxels; may be given several times (default: 128 128 128)",
    )
    parser.add_argument(
        "--depth", type=int, nargs="+", metavar="N", help="cut the network to N blocks, a multiple of 4"
    )
    parser.add_argument(
        "--what",
        nargs="+",
        choices=WHAT,
        default=list(WHAT),
        help="forward pass with 10 points, training step, nnU-Net's prediction of a volume (default: all)",
    )
    parser.add_argument(
        "--form",
        nargs="+",
        choices=FORMS,
        default=["ours"],
        help="this package's network, or the published arithmetic written plainly (default: ours)",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["float32"], help="of matrix products (default: float32)"
    )
    parser.add_argument("--recipe", nargs="+", choices=TRAINED, default=["DualPath"], help="default: DualPath")
    parser.add_argument(
        "--checkpointing",
        nargs="+",
        choices=("off", "on"),
        default=["off"],
        help="whether training steps recompute activations (default: off)",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--volume",
        type=int,
        nargs=3,
        metavar=("D", "H", "W"),
        help="voxels that are predicted (default: one and a half patches along each axis)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of a case (default: %(default)s)")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds after which no further run of a case begins (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=3600.0,
        metavar="S",
        help="seconds after which a case is given up (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write environment and records; kept after each case")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the records: .png, .svg or .pdf")
    parser.add_argument("--again", action="store_true", help="measure anew what FILE already holds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures, prints the table; status 1 if the two forms are not the same function or nothing could be measured."""
    from nnunetv2_sam3d.benchmark import records as report
    from nnunetv2_sam3d.benchmark.case import cases
    from nnunetv2_sam3d.benchmark.run import parity_failures
    from nnunetv2_sam3d.benchmark.run import run as measure

    _check(options)
    result = measure(
        cases(
            variants=options.variant,
            patch_sizes=[tuple(size) for size in options.patch_size or [(128, 128, 128)]],
            depths=options.depth,
            what=options.what,
            forms=options.form,
            precisions=options.precision,
            recipes=options.recipe,
            checkpointing=[value == "on" for value in options.checkpointing],
            batch_size=options.batch_size,
            device=options.device,
            volume=tuple(options.volume) if options.volume else None,
        ),
        json_file=options.json,
        repeats=options.repeats,
        time_limit_s=options.time_limit,
        timeout_s=options.timeout,
        threads=options.threads,
        again=options.again,
        say=say,
    )
    records = result["records"]
    say()
    say(report.table(records))
    for line in ["", *report.notes(records)]:
        say(line)
    if options.json:
        say(f"wrote {options.json}")
    if options.plot:
        report.plot(records, options.plot)
        say(f"wrote {options.plot}")
    failures = parity_failures(records)
    for sentence in failures:
        say(f"NOT THE SAME FUNCTION: {sentence}")
    return 1 if failures or all("failed" in record for record in records) else 0


def _check(options: argparse.Namespace) -> None:
    """Refuses numbers that cannot work, before anything is measured."""
    for name in ("batch_size", "repeats", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.device == "cpu" and "float16" in options.precision:
        raise ValueError("--precision float16 is for --device cuda; CPUs take bfloat16")
    if options.volume and min(options.volume) < 1:
        raise ValueError(f"--volume takes three positive voxel counts, got {options.volume}")
    if options.plot and options.plot.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot takes a file that ends in .png, .svg or .pdf, got {options.plot}")
