"""The whole network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.adapters import DualPathAdapter3d
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.network_architecture.cpu import cpu_precision
from nnunetv2_sam3d.network_architecture.image_encoder import ImageEncoder3d
from nnunetv2_sam3d.network_architecture.mask_decoder import MaskDecoder3d
from nnunetv2_sam3d.network_architecture.prompt_encoder import PromptEncoder3d


class Features(NamedTuple):
    """What the encoder knows of an image, for as many clicks as follow.

    Attributes:
        taps: four of (B, C, d, h, w), shallow to deep.
        image: (B, in_channels, D', H', W'), padded to whole tokens.
        size: D, H, W before the padding.
    """

    taps: tuple[Tensor, ...]
    image: Tensor
    size: Sequence[int]


class SAM3D(nn.Module):
    """3DSAM-adapter: image encoder, prompt encoder on the deepest tap, mask decoder.

    Source: Gong et al., arXiv:2306.13465.

    Args:
        config: sizes, see :class:`SAM3DConfig`.
        precision: of the matrix products on a CPU, where nnU-Net has no autocast: ``float32``, ``bfloat16``, or
            ``auto``, bfloat16 for inference where it is faster (not for training, where PyTorch's gradients on
            CPUs are less tried in it). Weights, gradients and logits stay float32. Elsewhere than on CPUs, and under
            the caller's own autocast, it has no effect.

    Shape:
        image: (B, in_channels, D, H, W), any size; padded at its end to whole tokens, the logits are cropped back.
        points: (B, N, 3), (z, y, x) in voxels of the image, fractional allowed; N may be 0, ``None`` means no points.
        signs: (B, N), 1 for points in the target, -1 for points outside it (only with ``signed_clicks``), 0 for entries
            that are no points, so that samples of a batch can have different numbers of them; ``None`` means all 1.
        returns logits (B, num_classes, D, H, W); no final nonlinearity.

    Raises:
        ValueError: for an image or points of another shape, and for points given to a network without prompt encoder.
    """

    def __init__(self, config: SAM3DConfig, precision: str = "float32") -> None:
        super().__init__()
        self.config = config
        self.cpu_precision = cpu_precision(precision)  # of inference
        self.cpu_training_precision = "float32" if precision == "auto" else precision
        self.encoder = ImageEncoder3d(config)
        self.prompt_encoder = (
            PromptEncoder3d(config.out_channels, config.prompt_mlp_dim, config.signed_clicks, config.click_maps)
            if config.prompt_encoder
            else None
        )
        self.mask_decoder = MaskDecoder3d(
            config.out_channels, config.decoder_channels, config.num_classes, config.decoder_scale
        )

    def forward(self, image: Tensor, points: Tensor | None = None, signs: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(image), points, signs)

    def encode(self, image: Tensor) -> Features:
        """The image encoder's part of ``forward``, by far the largest, which no click changes.

        Args:
            image: (B, C, D, H, W), preprocessed.

        Returns:
            the taps, and what the decoder needs of the image.

        Raises:
            ValueError: for another shape.
        """
        if image.ndim != 5 or image.shape[1] != self.config.in_channels:
            raise ValueError(
                f"expected an image of shape (B, {self.config.in_channels}, D, H, W), got {tuple(image.shape)}"
            )
        size = image.shape[2:]
        pad = [-length % stride for length, stride in zip(size, self.config.token_stride, strict=True)]
        if any(pad):
            image = F.pad(image, [part for after in reversed(pad) for part in (0, after)], mode="replicate")
        if self._in_bfloat16(image):
            with torch.autocast("cpu", torch.bfloat16):
                return Features(tuple(self.encoder(image)), image, size)
        return Features(tuple(self.encoder(image)), image, size)

    def decode(self, features: Features, points: Tensor | None = None, signs: Tensor | None = None) -> Tensor:
        """Prompt encoder and mask decoder: ``forward`` for an image that is encoded already.

        Args:
            features: of :meth:`encode`.
            points: as in ``forward``.
            signs: as in ``forward``.

        Returns:
            logits (B, classes, D, H, W).

        Raises:
            ValueError: for points or signs of another shape.
        """
        points = self._checked(features.image, points, signs)
        if self._in_bfloat16(features.image):
            with torch.autocast("cpu", torch.bfloat16):
                return self._logits(features, points, signs).float()
        return self._logits(features, points, signs)

    def _logits(self, features: Features, points: Tensor, signs: Tensor | None) -> Tensor:
        taps, image, size = list(features.taps), features.image, features.size
        if self.prompt_encoder is not None:
            taps = self.prompt_encoder.prompted(taps, points, image.shape[2:], signs)
        logits = self.mask_decoder(taps, image)
        return logits if image.shape[2:] == size else logits[:, :, : size[0], : size[1], : size[2]]

    def _in_bfloat16(self, image: Tensor) -> bool:
        """Whether this network chooses its precision, and chooses that."""
        precision = self.cpu_training_precision if torch.is_grad_enabled() else self.cpu_precision
        return precision == "bfloat16" and image.device.type == "cpu" and not torch.is_autocast_enabled("cpu")

    def prepare(self, patch_size: Sequence[int]) -> SAM3D:
        """Computes once what depends on the size of the image, for the size (voxels, D H W) that is mostly used."""
        self.encoder.prepare(self.config.token_grid(patch_size))
        return self

    def set_adapter_plane(self, plane: str) -> None:
        """Lets DualPath adapters work in another plane, ``slice`` or ``published``."""
        self.config = replace(self.config, adapter_plane=plane)
        for module in self.modules():
            if isinstance(module, DualPathAdapter3d):
                module.set_plane(plane)

    def _checked(self, image: Tensor, points: Tensor | None, signs: Tensor | None) -> Tensor:
        if points is None:
            if signs is not None:
                raise ValueError("got signs without points")
            return image.new_zeros(image.shape[0], 0, 3)
        if points.ndim != 3 or points.shape[0] != image.shape[0] or points.shape[2] != 3:
            raise ValueError(
                f"expected points of shape ({image.shape[0]}, N, 3) as (z, y, x) voxels, got {tuple(points.shape)}"
            )
        if signs is not None and signs.shape != points.shape[:2]:
            raise ValueError(f"expected a sign for each point, {tuple(points.shape[:2])}, got {tuple(signs.shape)}")
        if self.prompt_encoder is None and points.shape[1]:
            raise ValueError(
                "this network has no prompt encoder (an automatic checkpoint) and cannot take points; "
                "call it with points=None or load a prompted checkpoint"
            )
        return points
