"""A report of a study: the answer first, arms against declared controls, and what was not run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from results_tree import CONFIGURATION, PLANS, Tree, labels_of, lines_of, write_image, write_tree

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.report.answer import answer
from nnunetv2_sam3d.results.statistics import Difference
from nnunetv2_sam3d.weights.reading import METADATA_KEY

PREFIX = "nnUNetTrainer_SAM3D"
SHIFTS = {"Full": 3, "OriginalEval": 3, "OriginalContinued": 2, "DualPath": 1}
BLOCKS = [{"gate_mean": 0.5, "gate_sd": 0.1, "local_share": 0.125}] * 2


def write_checkpoint(folder: Path, network: SAM3D, trained: str, paths: Any = None) -> None:
    """As a trainer of this package writes it after two epochs."""
    names = [name for name, _ in network.named_parameters() if re.search(trained, name)]
    start = {"SAM encoder": {"file": "sam_vit_b_01ec64.pth", "kind": "sam", "sha256": "0" * 64}}
    metadata = {"format": 1, "network": network.config.to_dict(), "provenance": start, "trained": names}
    plans = {"configurations": {CONFIGURATION: {"sam3d": {"iterations_per_epoch": 30}}}}
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "x",
        METADATA_KEY: metadata,
        "init_args": {"plans": plans, "configuration": CONFIGURATION},
        "logging": {"train_losses": [1.0, 0.5]} | ({"adapter_paths": paths} if paths else {}),
    }
    torch.save(content, folder / "checkpoint_final.pth")


def write_repeat(tree: Tree, trainer: str, repeat: int, folds: range, shift: int) -> None:
    """Predictions of another repeat, a voxel further in every third case."""
    model = tree.model(trainer).with_name(f"{trainer}__{PLANS}_repeat{repeat}__{CONFIGURATION}")
    for number, case in enumerate(tree.cases):
        if number % 5 in folds:
            moved = np.roll(labels_of(number), shift + (number % 3 == 0), axis=2)
            write_image(moved, model / f"fold_{number % 5}" / "validation" / f"{case}.nii.gz")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_network: Callable[..., SAM3D]) -> tuple[Tree, Path]:
    """The controls: Full twice, one arm not finished, some not trained; gates measured for one fold only."""
    root = tmp_path_factory.mktemp("study")
    tree = write_tree(root / "nnunet", trainers={PREFIX + arm: shift for arm, shift in SHIFTS.items()})
    for arm in ("OriginalContinued", "DualPath"):
        write_repeat(tree, PREFIX + arm, 2, range(5), SHIFTS[arm])
        write_repeat(tree, PREFIX + arm, 3, range(2), SHIFTS[arm])  # not finished
        for fold in range(5):
            network = make_network(fold, adapter="dualpath" if arm == "DualPath" else "original")
            paths = [[block | {"gate_mean": 0.9} for block in BLOCKS], BLOCKS] if arm == "DualPath" else None
            write_checkpoint(tree.model(PREFIX + arm) / f"fold_{fold}", network, r"adapter|depth_embed", paths)
    write_repeat(tree, PREFIX + "OriginalWide", 1, range(0), 0)
    wide = tree.model(PREFIX + "OriginalWide")
    write_image(labels_of(0), wide / "fold_0" / "validation" / "case_000.nii.gz")
    (wide / "plans.json").write_text(json.dumps({"plans_name": PLANS}))
    fold = tree.model(PREFIX + "DualPath") / "fold_1"
    digest = sha256((fold / "checkpoint_final.pth").read_bytes()).hexdigest()
    measured = {"format": 1, "checkpoint_sha256": digest, "blocks": BLOCKS, "cases": ["case_001"],
                "changed": {"local": 0.0125, "global": 0.5, "of": "foreground"}}  # fmt: skip
    (fold / "adapters.json").write_text(json.dumps(measured))
    other = tree.model(PREFIX + "DualPath") / "fold_2" / "adapters.json"
    other.write_text(json.dumps(measured | {"blocks": [{"gate_mean": 0.1}]}))  # of another checkpoint
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tree.environment.items():
            patch.setenv(name, value)
        options = ["-d", "990", "-o", str(root / "out"), "-np", "1", "--view-cases"]
        assert main(["report", *options, "--study", "controls"]) == 0
    return tree, root / "out"


def test_the_page_opens_with_its_answer(study: tuple[Tree, Path]) -> None:
    page = (study[1] / "report.html").read_text()
    lead = page.index(
        '<p class="answer">Dice of tumour: DualPath is better than its declared control OriginalContinued'
    )
    figure, cases = page.index("<img"), page.index('<section id="cases">')
    assert page.index("<nav>") < lead < figure < page.index("<table>") < cases
    assert page[:cases].count("<table>") == 1 and 'class="note"' not in page
    assert "2 repeats" in page[lead:figure] and "repeats included" in page[lead:figure]
    for anchor in ("differences", "noise", "gates", "tables", "threats", "reading", "provenance"):
        assert re.search(rf'<section id="{anchor}">\s*<details><summary>', page), anchor
    assert page.count("<details>") == page.count("</details>")


def test_arms_are_compared_with_declared_controls(study: tuple[Tree, Path]) -> None:
    summary = json.loads((study[1] / "summary.json").read_text())
    pairs = {(d["second"], d["first"]): len(d["repeats"]) for d in summary["differences"]}
    assert pairs == {("OriginalContinued", "OriginalEval"): 1, ("DualPath", "OriginalContinued"): 2}
    arms = {line["arm"]: line for line in lines_of(study[1] / "tables" / "arms.md")}
    assert list(arms) == ["Full", "OriginalEval", "OriginalContinued", "DualPath"]
    line = arms["DualPath"]
    assert (line["declared control"], line["steps"]) == ("OriginalContinued", "60")
    assert line["adapter"] == "dualpath, slice plane" and arms["OriginalContinued"]["adapter"] == "original"
    assert line["what is trained"] == "adapters, 3D parts of the encoder (in part)"
    assert line["start"] == r"sam\_vit\_b\_01ec64.pth" and line["trainings"] == "10"


def test_noise_between_repeats(study: tuple[Tree, Path]) -> None:
    noise = {(e["structure"], e["arm"]): e for e in lines_of(study[1] / "tables" / "noise_automatic.md")}
    assert float(noise["kidney", "DualPath"]["SD of Dice"]) > 0
    assert (noise["kidney", "Full"]["SD of Dice"], noise["kidney", "Full"]["repeats"]) == ("-", "1")


def test_gates_of_files_and_logs(study: tuple[Tree, Path]) -> None:
    """A file of another checkpoint does not count; the last epoch of the log does."""
    gates = lines_of(study[1] / "tables" / "gates.md")
    assert [(e["arm"], e["block"], e["trainings"], e["measured"]) for e in gates] == [
        ("DualPath", str(block), "5", "1") for block in range(2)
    ]
    assert gates[0]["mean of the gate"].startswith("0.500") and gates[0]["share of the local path"].startswith("0.125")
    (changed,) = lines_of(study[1] / "tables" / "paths.md")
    assert list(changed.values()) == ["DualPath", "1", "1.25", "50.00"]


def test_threats_are_what_was_not_run(study: tuple[Tree, Path]) -> None:
    threats = "\n".join(json.loads((study[1] / "summary.json").read_text())["threats to validity"])
    for part in (
        "DualPathCold (not trained). Left open: What is the warm start of the adapters worth?",
        "OriginalWide (fold 0 1 2 3 4 of 5 folds not finished)",
        "The rest is done by: nnUNetv2_sam3d crossval -d ",
        "One repeat only: Full and OriginalEval were trained once a fold",
        "2 unfinished repeats are left out: OriginalContinued repeat 3 (fold 2 3 4), DualPath repeat 3 (fold 2 3 4)",
        "Unlike numbers of repeats",
        "DualPath and its control OriginalContinued differ in trained parameters",
        "for 4 of 5 trainings (1 of them only for an earlier checkpoint): nnUNetv2_sam3d adapters MODEL",
        "ResEnc-M",
        "nothing was evaluated with clicks",
    ):
        assert part in threats, part
    assert "OriginalContinued and its control" not in threats  # steps are what it asks about
    assert "No control" not in threats and "Not all folds" not in threats


def test_a_study_without_finished_arms(tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for trainer in ("Full", "DualPath", "OriginalEval"):
        tree.prediction(PREFIX + trainer, "case_003").unlink()
    options = ["-d", "990", "-o", str(tmp_path / "out"), "-np", "1"]
    assert main(["report", *options, "--study", "controls"]) == 1
    message = capsys.readouterr().err
    assert "none of the 6 arms" in message and "Full (fold 3 of 5 folds not finished)" in message
    assert message.count("(") <= 4 and "--study controls does what is missing" in message
    assert main(["report", *options]) == 1
    assert "name the arms with --study or --trainers" in capsys.readouterr().err


def compared(second: str, first: str, mean: float, *, p: float, repeats: int = 3, cases: int = 30) -> Difference:
    reach = abs(mean) * (0.5 if p < 0.05 else 2)
    return Difference(
        first, second, "tumour", "dice", cases, {r: mean for r in range(1, repeats + 1)}, 0.01, mean, mean - reach,
        mean + reach, repeats > 1, mean, p, p, mean - reach, mean + reach, 2, p, 0.5, 2.0 ** (1 - cases),
    )  # fmt: skip


def told(*differences: Difference, controls: bool = True) -> str:
    adapters = {"OriginalEval": "original", "OriginalContinued": "original", "DualPath": "dualpath"}
    results: Any = SimpleNamespace(
        focus=SimpleNamespace(name="tumour"),
        differences=differences,
        controls={d.second: d.first for d in differences} if controls else {},
        trainings=[SimpleNamespace(model=name, adapter=adapter) for name, adapter in adapters.items()],
    )
    return answer(results)


def test_better_is_said_of_what_is_shown_with_repeats() -> None:
    claim = "DualPath", "OriginalContinued"
    assert told(compared(*claim, 0.02, p=0.01)) == (
        "Dice of tumour: DualPath is better than its declared control OriginalContinued, +0.020 [+0.010, +0.030] "
        "(3 repeats), repeats included."
    )
    assert "DualPath is worse than its declared control" in told(compared(*claim, -0.02, p=0.01))
    nothing = told(compared(*claim, 0.02, p=0.2))
    assert "DualPath is not shown to be better or worse" in nothing and "[-0.020, +0.060]" in nothing
    assert "is better" not in told(compared(*claim, 0.02, p=0.01, cases=4))  # so few pairs carry nothing
    once = told(compared(*claim, 0.02, p=0.01, repeats=1))
    assert "DualPath did better than" in once and "is better" not in once
    assert once.endswith("with one repeat, training noise is left out.")
    assert "declared control" not in told(compared(*claim, 0.02, p=0.01), controls=False)


def test_comparisons_between_adapters_come_first() -> None:
    sentence = told(
        compared("OriginalContinued", "OriginalEval", 0.1, p=0.001),
        compared("DualPath", "OriginalContinued", 0.002, p=0.6),
    )
    assert sentence.index("DualPath is not shown") < sentence.index("OriginalContinued is better than")
