"""The arms of a study on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_sam3d.network_architecture.config import variant_of
from nnunetv2_sam3d.nnunet.descriptions import configuration_of, read_plans
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.trainers.names import STUDIES, study_arms
from nnunetv2_sam3d.weights.sources import SAM_FILES, find_sam_checkpoint


def arms_of(studies: Sequence[str], plans: Path, configuration: str) -> list[str]:
    """Short names of the trainers of studies, the start first.

    Args:
        studies: keys of :data:`~nnunetv2_sam3d.trainers.names.STUDIES`.
        plans: file of the SAM3D plans.
        configuration: in them.

    Raises:
        ValueError: for unknown studies, plans that are not there, or settings in them that cannot work.
    """
    if unknown := [study for study in studies if study not in STUDIES]:
        raise ValueError(f"there is no study {unknown[0]!r}; choose from {', '.join(STUDIES)}")
    if not plans.is_file():
        raise ValueError(f"{plans} does not exist; make it: nnUNetv2_sam3d plan -d {plans.parent.name} -o {plans.stem}")
    chosen = configuration_of(plans, read_plans(plans), configuration).configuration
    return study_arms(list(studies), start_of_studies(Settings.from_plans(chosen, plans)))


def start_of_studies(settings: Settings) -> str:
    """``Original`` where SAM's encoder exists for the network of the settings, ``Full`` where it does not."""
    network = settings.network_config(adapter="original", in_channels=1, num_classes=2)
    published = variant_of(network) in SAM_FILES
    given = find_sam_checkpoint(settings.variant, settings.sam_checkpoint) is not None
    return "Original" if published or given else "Full"
