"""The report's answer: one sentence that says no more than the adjusted intervals do, and its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from nnunetv2_sam3d.report.forest import Line, forest
from nnunetv2_sam3d.report.request import Results
from nnunetv2_sam3d.report.tables import counted, interval, listed
from nnunetv2_sam3d.results.statistics import METRICS, Difference, Summary, is_shown
from nnunetv2_sam3d.trainers.names import CLAIM

METRIC = METRICS[0]
PANELS = 3  # structures that fit beside each other


def answer(results: Results) -> str:
    """What the comparisons of Dice of the focus structure show, in one sentence; those between adapters first."""
    structure = results.focus.name
    found = [d for d in results.differences if (d.metric, d.structure) == (METRIC.key, structure) and d.cases]
    if not found:
        return _means(results)
    found.sort(key=lambda entry: entry.second != CLAIM)
    parts = [part for entries in _by_subject(found, results) for part in _parts(entries, results.controls)]
    if once := [entry for entry in found if not entry.includes_training_noise]:
        pairs = (_pair(entry, results.controls) for entry in once)
        which = "" if len(once) == len(found) else f" for {listed(pairs, len(once))}"
        parts.append(f"with one repeat, training noise is left out{which}")
    return f"{METRIC.title} of {structure}: {'; '.join(parts)}."


def answer_figure(results: Results) -> Figure:
    """Each arm against its control; of a single model, its means."""
    structures = [results.focus.name]
    structures += [s.name for s in results.structures if s.name != results.focus.name][: PANELS - 1]
    entries = [d for d in results.differences if d.metric == METRIC.key and d.cases]
    if entries:
        structures = [name for name in structures if any(d.structure == name for d in entries)]
        title = (
            f"difference in {METRIC.title}, arm minus control" if results.controls else f"difference in {METRIC.title}"
        )
        rows = [
            {name: [_difference_line(d, results) for d in some if d.structure == name] for name in structures}
            for some in _by_subject(entries, results)
        ]
        return forest(rows, title, zero=True)
    means = [s for s in results.summaries if s.metric == METRIC.key]
    return forest([{name: [_mean_line(s) for s in means if s.structure == name] for name in structures}], METRIC.title)


def caption(results: Results) -> str:
    """Of the answer's figure."""
    cases = f"{results.cases} cases of {counted(len(results.folds), 'fold')}"
    if not any(d.metric == METRIC.key and d.cases for d in results.differences):
        return f"Mean {METRIC.title} over {cases} with its 95 % interval; small dots: the repeats."
    what = (
        "Each arm against its declared control"
        if results.controls
        else "All pairs of models, since no model's declared control is in this report"
    )
    return (
        f"{what}: mean difference in {METRIC.title} over {cases}. Thick line: 95 % interval; thin line: adjusted for "
        f"all comparisons (Holm), the one that decides; small dots: single repeats. A hollow symbol marks one repeat, "
        f"whose interval leaves training noise out."
    )


def _by_subject(entries: Sequence[Difference], results: Results) -> list[list[Difference]]:
    """Comparisons between adapters, then the others, whose differences are often many times as large."""
    adapter = {run.model: run.adapter for run in results.trainings if run.adapter}
    between = [d for d in entries if len({adapter[name] for name in (d.first, d.second) if name in adapter}) == 2]
    return [some for some in (between, [d for d in entries if d not in between]) if some]


def _parts(entries: Sequence[Difference], controls: Mapping[str, str]) -> list[str]:
    """What is shown, comparison by comparison, and then for which ones nothing is."""
    parts = [_shown(entry, controls) for entry in entries if is_shown(entry)]
    others = [entry for entry in entries if not is_shown(entry)]
    if len(others) == 1:
        one = others[0]
        parts.append(f"{one.second} is not shown to be better or worse than {_first(one, controls)}, {_figures(one)}")
    elif others:
        pairs = (f"{_pair(entry, controls)}, {_figures(entry)}" for entry in others)
        parts.append(f"no difference is shown for {listed(pairs, len(others))}")
    return parts


def _means(results: Results) -> str:
    of_focus = [s for s in results.summaries if (s.metric, s.structure) == (METRIC.key, results.focus.name)]
    means = listed((f"{s.model} {interval(s.mean, s.low, s.high)}" for s in of_focus), 6)
    return (
        f"{METRIC.title} of {results.focus.name}: {means}, the mean over {results.cases} cases with 95 % interval; "
        f"there is nothing to compare with."
    )


def _shown(entry: Difference, controls: Mapping[str, str]) -> str:
    word = "better" if (entry.mean > 0) == (METRIC.better == "higher") else "worse"
    if entry.includes_training_noise:
        return f"{entry.second} is {word} than {_first(entry, controls)}, {_figures(entry)}, repeats included"
    return f"{entry.second} did {word} than {_first(entry, controls)} in one training each, {_figures(entry)}"


def _first(entry: Difference, controls: Mapping[str, str]) -> str:
    return f"its declared control {entry.first}" if controls.get(entry.second) == entry.first else entry.first


def _pair(entry: Difference, controls: Mapping[str, str]) -> str:
    return f"{entry.second} against {entry.first}" if controls else f"{entry.second} and {entry.first}"


def _figures(entry: Difference) -> str:
    """The difference with its adjusted interval and the number of repeats."""
    if math.isnan(entry.low_holm):
        return f"{entry.mean:+.3f}"
    ends = f"[{entry.low_holm:+.3f}, {entry.high_holm:+.3f}]"
    return f"{entry.mean:+.3f} {ends} ({counted(len(entry.repeats), 'repeat')})"


def _difference_line(entry: Difference, results: Results) -> Line:
    label = f"{entry.second}\n- {entry.first}\n{counted(len(entry.repeats), 'repeat')}"
    repeats: Sequence[float] = list(entry.repeats.values()) if len(entry.repeats) > 1 else ()
    adjusted = (entry.low_holm, entry.high_holm)
    place = results.names.index(entry.second)
    return Line(label, entry.mean, (entry.low, entry.high), adjusted, repeats, entry.includes_training_noise, place)


def _mean_line(entry: Summary) -> Line:
    label = f"{entry.model}\n{counted(len(entry.repeats), 'repeat')}"
    repeats: Sequence[float] = list(entry.repeats.values()) if len(entry.repeats) > 1 else ()
    return Line(label, entry.mean, (entry.low, entry.high), (math.nan, math.nan), repeats, len(repeats) > 1, 0)
