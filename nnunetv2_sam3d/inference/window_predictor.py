"""Whole volumes with clicks: windows that hold clicks are prompted, everything else is automatic."""

from __future__ import annotations

import io
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from copy import copy
from types import SimpleNamespace

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunetv2_sam3d.inference.turns import InTurn, Turns
from nnunetv2_sam3d.inference.window_geometry import Window, borders, clicks_inside, place_windows, window_weight
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D, Features

CACHE_BYTES = 4 << 30


class WindowPredictor:
    """Logits of a preprocessed volume, with and without clicks.

    Without clicks it is nnU-Net's sliding window. With clicks, ``place_windows`` lays windows around them, which are
    prompted with all clicks they hold. Towards their borders they fade into the automatic logits. Windows that overlap
    are averaged. Far from the windows the automatic logits are untouched.

    What no click changes is computed once for a window (and fold and mirroring) and kept, so that a further click in it
    costs little. If that takes more memory than ``cache_bytes``, the windows that were not used for longest are
    dropped, and computed again when they are needed.

    Args:
        networks: one for each fold.
        patch_size: D, H, W, of the plans.
        mirror_axes: axes (0, 1, 2 for D, H, W) that are mirrored, also in prompted windows; a click moves with them.
        tile_step_size: of the sliding window, in patches.
        device: where the networks go.
        cache_bytes: for the windows' features, on the device.
        progress: show nnU-Net's progress bar for the automatic prediction.

    Raises:
        ValueError: for no networks, or networks that do not belong together.
    """

    def __init__(
        self,
        networks: Sequence[SAM3D],
        patch_size: Sequence[int],
        *,
        mirror_axes: Sequence[int] | None = None,
        tile_step_size: float = 0.5,
        device: torch.device | str = "cpu",
        cache_bytes: int = CACHE_BYTES,
        progress: bool = False,
    ) -> None:
        kinds = {
            (n.config.in_channels, n.config.num_classes, n.config.prompt_encoder, n.config.signed_clicks)
            for n in networks
        }
        if len(kinds) != 1:
            raise ValueError(f"expected networks of one model, got {len(networks)} networks of {len(kinds)} kinds")
        self.device = torch.device(device)
        self.networks = [network.to(self.device).eval() for network in networks]
        self.config = networks[0].config
        self.patch_size = tuple(int(length) for length in patch_size)
        self.cache_bytes = cache_bytes
        axes = sorted(mirror_axes or ())
        self.mirrorings = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
        with redirect_stdout(io.StringIO()):  # it tells users of CPUs about a default that they did not choose
            self._sliding = nnUNetPredictor(
                tile_step_size=tile_step_size,
                perform_everything_on_device=self.device.type == "cuda",
                device=self.device,
                allow_tqdm=progress,
            )
        # all that its sliding window asks of a model
        self._sliding.configuration_manager = SimpleNamespace(patch_size=list(self.patch_size))
        self._sliding.label_manager = SimpleNamespace(num_segmentation_heads=self.config.num_classes)
        self._sliding.allowed_mirroring_axes = tuple(axes) or None
        self.turns = Turns()
        self._forget_image()

    def _forget_image(self) -> None:
        self._image: Tensor | None = None
        self._automatic: Tensor | None = None
        self._features: OrderedDict[Window, dict[tuple[int, tuple[int, ...]], Features]] = OrderedDict()
        self._prompted: dict[Window, tuple[tuple[float, ...], Tensor]] = {}

    def for_another_image(self, *, cache_bytes: int = CACHE_BYTES) -> WindowPredictor:
        """The same networks for another image beside this one.

        The two may be used by two threads: their passes through the networks take turns, one window each.
        """
        other = copy(self)
        other.cache_bytes, other.turns = cache_bytes, self.turns.branch()
        other._sliding = copy(self._sliding)
        other._forget_image()
        return other

    def set_image(self, image: Tensor, automatic: Tensor | None = None) -> None:
        """The volume that the next calls are about.

        Args:
            image: (C, D, H, W), as nnU-Net preprocesses it.
            automatic: logits (classes, D, H, W) if they are known; computed when they are needed by default.

        Raises:
            ValueError: for other shapes.
        """
        if image.ndim != 4 or image.shape[0] != self.config.in_channels:
            raise ValueError(
                f"expected an image of shape ({self.config.in_channels}, D, H, W), got {tuple(image.shape)}"
            )
        if automatic is not None and automatic.shape != (self.config.num_classes, *image.shape[1:]):
            raise ValueError(
                f"expected automatic logits of shape {(self.config.num_classes, *image.shape[1:])}, got "
                f"{tuple(automatic.shape)}"
            )
        self._image = image.float()
        self._automatic = automatic
        # as nnU-Net pads what is smaller than a window; the slices undo it
        self._padded, (_, *inner) = pad_nd_image(self._image, self.patch_size, return_slicer=True)
        self._inner = (slice(None), *inner)
        self._features.clear()
        self._prompted.clear()

    @torch.inference_mode()
    def automatic(self) -> Tensor:
        """Logits (classes, D, H, W) without clicks, as nnU-Net computes them (float16); once for an image."""
        if self._automatic is None:
            total: Tensor | None = None
            for network in self.networks:
                self._sliding.network = InTurn(network, self.turns)
                logits = self._sliding.predict_sliding_window_return_logits(self._the_image).to("cpu")
                total = logits if total is None else total + logits
            assert total is not None
            self._automatic = total / len(self.networks) if len(self.networks) > 1 else total
        return self._automatic

    @torch.inference_mode()
    def logits(self, points: Tensor, signs: Tensor) -> Tensor:
        """Logits with clicks.

        Args:
            points: (N, 3), (z, y, x) in voxels of the image, voxel centre = integer, in the order of the clicks.
            signs: (N,), 1 for foreground, -1 for background.

        Returns:
            (classes, D, H, W), on the CPU, of the automatic logits' type; those themselves for no clicks.

        Raises:
            ValueError: for clicks that the network cannot use, other shapes, and points outside the image.
        """
        if not len(points):
            self._check(points, signs)
            return self.automatic()
        parts = self.parts(points, signs)
        result = self.automatic().clone()
        for box, part in parts:
            result[box] = part
        return result

    @torch.inference_mode()
    def parts(self, points: Tensor, signs: Tensor) -> list[tuple[tuple[slice, ...], Tensor]]:
        """Where :meth:`logits` differ from the automatic ones, and those logits; arguments and errors as there.

        Returns:
            for each window the box (C, D, H, W) in the image, and the logits in it, (classes, d, h, w); where boxes
            overlap they agree.
        """
        self._check(points, signs)
        points = points.detach().cpu().float() + torch.tensor([float(s.start) for s in self._inner[1:]])
        signs = signs.detach().cpu().float()
        size = self._padded.shape[1:]
        windows = place_windows(points, size, self.patch_size)
        prompted: dict[Window, tuple[tuple[float, ...], Tensor]] = {}
        for window in windows:
            inside = clicks_inside(points, window, self.patch_size)
            clicks = torch.cat([points[inside], signs[inside, None]], 1)
            key = tuple(clicks.flatten().tolist())
            known = self._prompted.get(window)
            if known is None or known[0] != key:
                start = torch.tensor(window, dtype=torch.float32)
                known = key, self._predict_window(window, points[inside] - start, signs[inside])
            prompted[window] = known
        self._prompted = prompted
        return self._blended({window: logits for window, (_, logits) in prompted.items()})

    @property
    def _the_image(self) -> Tensor:
        if self._image is None:
            raise RuntimeError("an image must be set with set_image() before the prediction")
        return self._image

    def _check(self, points: Tensor, signs: Tensor) -> None:
        size = self._the_image.shape[1:]
        if points.ndim != 2 or points.shape[1] != 3 or signs.shape != points.shape[:1]:
            raise ValueError(
                f"expected points (N, 3) and a sign for each, got {tuple(points.shape)} and {tuple(signs.shape)}"
            )
        if not len(points):
            return
        if (signs.abs() != 1).any():
            raise ValueError(f"signs are 1 (foreground) or -1 (background), got {signs.tolist()}")
        outside = ((points < -0.5) | (points > torch.tensor(size, device=points.device) - 0.5)).any(1)
        if outside.any():
            raise ValueError(
                f"the points {points[outside].tolist()} (z, y, x) lie outside the image of {list(size)} voxels"
            )
        self.check_signs(signs.tolist())

    def check_signs(self, signs: Sequence[float]) -> None:
        """Raises ValueError if the networks cannot take clicks of these signs, with what to do."""
        if signs and not self.config.prompt_encoder:
            raise ValueError(
                "the model has no prompt encoder (an automatic one) and takes no clicks. Predict without them, or "
                "train one with a prompt encoder: nnUNetv2_sam3d plan without --no-prompt-encoder"
            )
        if min(signs, default=1) < 0 and not self.config.signed_clicks:
            raise ValueError(
                "the model cannot tell background clicks from foreground clicks. Give foreground clicks only, or train "
                "a model that can: nnUNetv2_sam3d plan --signed-clicks"
            )

    def _predict_window(self, window: Window, points: Tensor, signs: Tensor) -> Tensor:
        """Logits (classes, *patch_size), float32 on the CPU, averaged over folds and mirrorings."""
        total: Tensor | None = None
        for fold, network in enumerate(self.networks):
            for axes in self.mirrorings:
                mirrored = points.clone()
                for axis in axes:
                    mirrored[:, axis] = self.patch_size[axis] - 1 - mirrored[:, axis]
                volume_axes = [axis + 2 for axis in axes]
                with self.turns, self._autocast():
                    features = self._window_features(window, fold, axes)
                    logits = network.decode(features, mirrored[None].to(self.device), signs[None].to(self.device))
                logits = torch.flip(logits, volume_axes).float()
                total = logits if total is None else total + logits
        assert total is not None
        return (total[0] / (len(self.networks) * len(self.mirrorings))).cpu()

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        """nnU-Net's choice."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _window_features(self, window: Window, fold: int, axes: tuple[int, ...]) -> Features:
        kept = self._features.setdefault(window, {})
        self._features.move_to_end(window)
        if (fold, axes) in kept:
            return kept[fold, axes]
        crop = self._padded[_box(window, self.patch_size)][None].to(self.device)
        network = self.networks[fold]
        features = network.encode(torch.flip(crop, [axis + 2 for axis in axes]))
        room = self.cache_bytes - _bytes(features)
        while len(self._features) > 1 and self._used_bytes() > room:
            self._features.popitem(last=False)
        if self._used_bytes() <= room:
            kept[fold, axes] = features
        return features

    def _used_bytes(self) -> int:
        return sum(_bytes(features) for kept in self._features.values() for features in kept.values())

    def _blended(self, prompted: dict[Window, Tensor]) -> list[tuple[tuple[slice, ...], Tensor]]:
        """The prompted windows, faded into the automatic logits."""
        automatic, size = self.automatic(), self._padded.shape[1:]
        parts = []
        weights = {
            window: window_weight(*borders(window, size, self.patch_size), self.patch_size) for window in prompted
        }
        for window in prompted:
            mixed = torch.zeros_like(prompted[window])
            total, strongest = torch.zeros(1, *self.patch_size), torch.zeros(1, *self.patch_size)
            for other, logits in prompted.items():
                here, there = _overlap(window, other, self.patch_size), _overlap(other, window, self.patch_size)
                weight = weights[other][None][there]
                mixed[here] += weight * logits[there]
                total[here] += weight
                strongest[here] = strongest[here].maximum(weight)
            box, inside = self._within_image(window)
            blended = torch.lerp(automatic[box].float(), (mixed / total)[inside], strongest[inside])
            parts.append((box, blended.to(automatic.dtype)))
        return parts

    def _within_image(self, window: Window) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """A window's box in the image, and the same voxels in the window, which may reach into the padding."""
        box, inside = [slice(None)], [slice(None)]
        for start, length, inner in zip(window, self.patch_size, self._inner[1:], strict=True):
            low, high = max(start, inner.start), min(start + length, inner.stop)
            box.append(slice(low - inner.start, high - inner.start))
            inside.append(slice(low - start, high - start))
        return tuple(box), tuple(inside)


def _bytes(features: Features) -> int:
    return features.image.nbytes + sum(tap.nbytes for tap in features.taps)


def _box(window: Window, patch_size: Sequence[int]) -> tuple[slice, ...]:
    """A window in a volume with channels."""
    return (slice(None), *(slice(start, start + length) for start, length in zip(window, patch_size, strict=True)))


def _overlap(window: Window, other: Window, patch_size: Sequence[int]) -> tuple[slice, ...]:
    """The voxels of a window that another one shares, possibly none; with channels."""
    shared = (
        slice(min(max(far - near, 0), length), max(min(far - near + length, length), 0))
        for near, far, length in zip(window, other, patch_size, strict=True)
    )
    return (slice(None), *shared)
