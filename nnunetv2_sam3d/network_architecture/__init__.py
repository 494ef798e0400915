"""The network: SAM's ViT encoder lifted to 3D, prompt encoder, mask decoder."""

from nnunetv2_sam3d.network_architecture.config import VARIANTS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

__all__ = ["SAM3D", "VARIANTS", "SAM3DConfig"]
