"""How metrics and statistics are defined, in sentences."""

from __future__ import annotations

from nnunetv2_sam3d.results.hierarchical import ALPHA

RULES = (
    "Empty masks: where prediction and annotation are both empty, Dice and surface Dice count 1; where one of them is, "
    "0 (as KiTS counts; nnU-Net's own summary leaves the first kind out). HD95 is not defined in either case and left "
    "out; the tables say in how many cases it is defined.",
    "Surface Dice: share of both surfaces within the tolerance of the other one, with the areas of surface elements "
    "(DeepMind's surface-distance, which KiTS uses). HD95: the larger one of both directed 95th percentiles, weighted "
    "by area. All distances in millimetres on the grid of the annotation.",
    f"Intervals: 95 %, of the mean that the recipe would reach with other cases, folds and trainings: a variance over "
    f"repeats, folds and cases (two-way random effects, Student's t with Satterthwaite's degrees of freedom). p is "
    f"from the same variance, Holm-adjusted over all comparisons of one metric; {ALPHA} is taken as the limit.",
    "p over cases: Wilcoxon signed-rank test over cases, two-sided, pairs without difference dropped. It leaves "
    "training noise out: another training would move the figures by an amount that it does not know.",
    "With one repeat, the intervals know of other trainings only what the folds tell. Folds share training cases, "
    "which no interval takes into account.",
)
