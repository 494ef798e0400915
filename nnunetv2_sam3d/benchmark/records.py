"""Records of the benchmark as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.benchmark.case import BenchmarkCase

Record = dict[str, Any]
GB = 1e9


def table(records: Sequence[Record]) -> str:
    """Markdown: time, multiple of the floor, memory, and both against the plain form in float32."""
    head = ["", "seconds", "spread", "x floor", "peak GB", "faster than plain", "memory of plain", "max. difference"]
    rows = [head, ["---"] * len(head)]
    for record in records:
        name = BenchmarkCase.from_dict(record).label()
        if "failed" in record:
            rows.append([name, f"failed: {record['failed']}", *[""] * (len(head) - 2)])
            continue
        plain = _counterpart(records, record, form="plain", precision="float32", checkpointing=False)
        difference = record.get("max_difference")
        rows.append(
            [
                name,
                f"{record['seconds']:.3g}",
                f"{record['seconds_spread']:.2g}",
                f"{record['seconds'] / record['floor_seconds']:.2f}",
                f"{memory(record) / GB:.2f}",
                f"{plain['seconds'] / record['seconds']:.2f} x" if plain else "",
                f"{memory(record) / memory(plain):.2f} x" if plain else "",
                f"{difference:.1e} ({record['compared_with']})" if difference is not None else "",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def notes(records: Sequence[Record]) -> list[str]:
    """Sentences that need more than one record, or figures that are no times."""
    lines = []
    for record in records:
        if "failed" in record:
            continue
        name = BenchmarkCase.from_dict(record).label()
        if "trained_parameters" in record:
            share = 100 * record["trained_parameters"] / record["parameters"]
            lines.append(
                f"{name}: {record['trained_parameters']:,} of {record['parameters']:,} parameters trained "
                f"({share:.1f} %), optimizer state {record['optimizer_state_bytes'] / 1e6:.1f} MB in "
                f"{record['optimizer_groups']} groups, checkpoint {record['checkpoint_bytes'] / 1e6:.1f} MB, weights "
                f"alone {record['weights_bytes'] / 1e6:.1f} MB"
            )
        if "passes" in record:
            passes = record["seconds_of_one_pass"] * record["passes"]
            lines.append(
                f"{name}: {record['seconds'] / passes:.3f} times {record['tiles']} tiles x {record['mirrorings']} "
                f"mirrorings x one pass of {record['seconds_of_one_pass']:.3g} s"
            )
    for growth in per_block(records):
        lines.append(
            f"{growth['label']}: {growth['bytes'] / GB:.3f} GB and {growth['seconds']:.3g} s more for each block "
            f"({growth['depths'][0]} -> {growth['depths'][1]})"
        )
    return lines


def per_block(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What each further block costs, from records that differ in nothing but the depth."""
    found = []
    for first, second in combinations([record for record in records if "failed" not in record], 2):
        low, high = sorted((first, second), key=lambda record: record["depth"])
        if low["depth"] < high["depth"] and _counterpart([high], low, depth=high["depth"]):
            blocks = high["depth"] - low["depth"]
            found.append(
                {
                    "label": BenchmarkCase.from_dict(high).label(),
                    "depths": [low["depth"], high["depth"]],
                    "bytes": (memory(high) - memory(low)) / blocks,
                    "seconds": (high["seconds"] - low["seconds"]) / blocks,
                }
            )
    return found


def memory(record: Record) -> int:
    """Peak bytes: of the GPU where there is one, else resident."""
    return record["peak_cuda_bytes" if "peak_cuda_bytes" in record else "peak_rss_bytes"]


def plot(records: Sequence[Record], file: Path) -> None:
    """Bars of seconds, with the floor as a line, and of memory; PNG, SVG or PDF by the file's name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [record for record in records if "failed" not in record]
    if not done:
        raise RuntimeError("every case failed, there is nothing to draw")
    matplotlib.rcParams["svg.hashsalt"] = "nnunetv2_sam3d"
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, 1.2 + 0.34 * len(done)), sharey=True, layout="constrained"
    )
    rows = range(len(done))
    colours = ["#c44e52" if record["form"] == "plain" else "#4c72b0" for record in done]
    seconds = [record["seconds"] for record in done]
    spread = [record["seconds_spread"] / 2 for record in done]
    left.barh(rows, seconds, xerr=spread, color=colours)
    for row, record in zip(rows, done, strict=True):
        left.vlines(record["floor_seconds"], row - 0.4, row + 0.4, colors="black")
    left.set_xscale("log")
    left.set_xlabel("seconds (line: the floor)")
    left.set_yticks(list(rows), [BenchmarkCase.from_dict(record).label() for record in done], fontsize=8)
    left.invert_yaxis()
    right.barh(rows, [memory(record) / GB for record in done], color=colours)
    right.set_xlabel("peak memory [GB] (red: plain form)")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _counterpart(records: Sequence[Record], record: Record, **changes: Any) -> Record | None:
    """The finished record of the same case with some values changed."""
    wanted = BenchmarkCase.from_dict(record | changes)
    return next(
        (other for other in records if "failed" not in other and BenchmarkCase.from_dict(other) == wanted), None
    )
