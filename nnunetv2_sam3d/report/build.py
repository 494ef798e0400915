"""From nnU-Net's result folders to the report: checks, measures, compares, draws, writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from nnunetv2_sam3d.evaluation.clicked import collect_clicked
from nnunetv2_sam3d.files import write_text
from nnunetv2_sam3d.nnunet.labels import IGNORE, all_values, sounds_like_tumour
from nnunetv2_sam3d.own_files import LIST, check_foreign, made_anew
from nnunetv2_sam3d.report import sections
from nnunetv2_sam3d.report.click_sections import clicks_csv
from nnunetv2_sam3d.report.data_files import cases_csv, summary_json, unseen_csv
from nnunetv2_sam3d.report.gates import read_gates
from nnunetv2_sam3d.report.page import Page, render
from nnunetv2_sam3d.report.provenance import provenance
from nnunetv2_sam3d.report.request import Request, Results
from nnunetv2_sam3d.report.study import arms_with_results
from nnunetv2_sam3d.report.style import plot_style
from nnunetv2_sam3d.report.tables import Table
from nnunetv2_sam3d.report.training_record import read_training
from nnunetv2_sam3d.results.collect import check_splits, collect, collect_unseen, finished_repeats, taken_over
from nnunetv2_sam3d.results.measure import measure_all
from nnunetv2_sam3d.results.statistics import METRICS, differences, summarise, volume_groups
from nnunetv2_sam3d.results.structures import Structure, structures_of
from nnunetv2_sam3d.results.trained_models import RepeatedModel, declared_controls, find_models, open_dataset
from nnunetv2_sam3d.trainers.names import check_trainers

COMMAND, PAGE, STORE = "report", "report.html", "measured.jsonl"


def write_report(request: Request, output: Path, say: Callable[[str], None]) -> Path:
    """Writes ``report.html``, ``cases.csv``, ``clicks.csv`` if there are clicks, ``summary.json``, tables and figures.

    Measured cases are kept in ``measured.jsonl``: a second run measures only what has changed.

    Args:
        request: what is reported.
        output: folder; made if absent.
        say: takes the lines for the user.

    Returns:
        the page.

    Raises:
        ValueError: for results that are incomplete, do not fit together or cannot be read, before anything is written,
            and if the folder holds files of the report's names that no report made.
        FileNotFoundError: for missing ones.
    """
    dataset = open_dataset(request.dataset)
    structures = structures_of(dataset.json, request.tolerances_mm, kits=request.kits, lesions=request.lesions)
    focus = focus_of(structures, request.focus)
    borders = _checked_borders(request.volume_groups_ml)
    folds = check_splits(dataset, request.folds)
    arms = arms_with_results(dataset, request.study, request.plans, request.configuration, folds)
    named = {request.names.get(given, given) for given in request.trainers}
    trainers = [arm for arm in arms.present if request.names[arm] not in named]
    trainers = [*trainers, *request.trainers]
    models = find_models(dataset, trainers, request.plans, request.configuration, request.names, check_trainers)
    for given, model in zip(trainers, models, strict=True):
        if model.plans != request.plans and "__" not in given:
            say(f"{given} has no results with {request.plans}; those with {model.plans} are taken")
    models, unfinished = finished_repeats(dataset, models, folds)
    if unfinished:
        say(unfinished)
    items = collect(dataset, models, folds)
    absent = sorted(set(request.view_cases or ()) - {item.case for item in items})
    if absent:
        raise ValueError(f"--view-cases: {absent[0]} is no validation case of the folds {list(folds)}")
    trainings = [read_training(model, fold, repeat) for model in models for repeat in model.repeats for fold in folds]
    ignored = dataset.json["labels"].get(IGNORE)
    clicked = collect_clicked(dataset, models, folds)
    say(f"{len(items)} predictions of {len(models)} models, folds {' '.join(map(str, folds))}: complete")
    unseen = collect_unseen(dataset, models, request.unseen)
    written = [PAGE, "cases.csv", "summary.json", *(["clicks.csv"] if clicked else [])]
    listed = (output / LIST).exists() or not (output / STORE).exists()  # versions before 0.3 left a store and no list
    if listed:
        check_foreign(output, COMMAND, written)  # whether its other names are free shows when they are known
    notes = [*([unfinished] if unfinished else []), *taken_over(models, folds)]
    told = len(notes)
    measured = measure_all(
        [*items, *unseen],
        structures,
        all_values(dataset.json["labels"]),
        ignored_label=None if ignored is None else int(ignored),
        store=output / STORE,
        processes=request.processes,
        notes=notes,
    )
    for note in notes[told:]:
        say(note)
    rows, unseen_rows = measured[: len(items) * len(structures)], measured[len(items) * len(structures) :]
    controls = declared_controls(models, request.controls)
    results = Results(
        dataset,
        models,
        folds,
        structures,
        focus,
        items,
        rows,
        [entry for metric in METRICS for entry in summarise(rows, metric)],
        [entry for metric in METRICS for entry in differences(rows, metric, controls)],
        volume_groups(rows, focus.name, borders),
        trainings,
        clicked,
        provenance(dataset, models, trainings, items, request.configuration, request.command),
        controls,
        wanted_controls(models, request),
        request.study,
        arms.absent,
        notes,
        read_gates(models, trainings),
        unseen_rows,
    )
    with made_anew(output, COMMAND, checked=listed) as folder:
        with plot_style():
            chapters = sections.all_sections(results, folder / "figures", request.view_cases, tqdm)
        write_text(folder / "cases.csv", cases_csv(rows))
        if unseen_rows:
            write_text(folder / "unseen_cases.csv", unseen_csv(unseen_rows))
        if clicked:
            write_text(folder / "clicks.csv", clicks_csv(clicked))
        write_text(folder / "summary.json", summary_json(results))
        (folder / "tables").mkdir()
        for table in (table for chapter in chapters for table in chapter.tables):
            _write_table(table, folder / "tables")
        title = f"{dataset.name}: {', '.join(results.names)}"
        write_text(folder / PAGE, render(Page(title, sections.subtitle(results), chapters)))
    return output / PAGE


def wanted_controls(models: Sequence[RepeatedModel], request: Request) -> dict[str, str]:
    """Declared controls of the models that have one, by short names, whether or not they are reported."""
    shorts = {full: short for short, full in request.names.items()}
    declared = {model.name: request.controls[model.trainer] for model in models if model.trainer in request.controls}
    return {name: shorts.get(control, control) for name, control in declared.items()}


def focus_of(structures: Sequence[Structure], name: str | None) -> Structure:
    """The structure that overlays and sub-groups are about: the named one, a tumour, another lesion, or the first.

    Raises:
        ValueError: for a name that no structure has.
    """
    if name is not None:
        for structure in structures:
            if structure.name == name:
                return structure
        raise ValueError(f"there is no structure {name!r}; there are {[structure.name for structure in structures]}")
    lesions = [structure for structure in structures if structure.lesion]
    tumours = [structure for structure in lesions if sounds_like_tumour(structure.name)]
    return (tumours or lesions or list(structures))[0]


def _checked_borders(borders_ml: Sequence[float] | None) -> Sequence[float] | None:
    if borders_ml is not None and not all(a < b for a, b in zip([0.0, *borders_ml], borders_ml, strict=False)):
        raise ValueError(f"--volume-groups-ml takes ascending positive volumes, got {list(borders_ml)}")
    return borders_ml


def _write_table(table: Table, folder: Path) -> None:
    write_text(folder / f"{table.name}.md", table.markdown())
    write_text(folder / f"{table.name}.tex", table.latex())
