"""The trained bottlenecks in front of every frozen transformer block.

An adapter is a class with a name. Whoever needs one asks :data:`ADAPTERS`, so that a new adapter is a new class: the
configuration, the weights and the benchmark learn of it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.axes import channels_first, channels_last
from nnunetv2_sam3d.network_architecture.config import PUBLISHED, SLICE
from nnunetv2_sam3d.network_architecture.cpu import in_float32
from nnunetv2_sam3d.network_architecture.layers import (
    Depthwise3x3x3,
    DepthwiseAcrossSlices,
    DepthwiseInPlane,
    Pointwise3d,
)
from nnunetv2_sam3d.network_architecture.local_paths import HighFrequencies, UNetPlusPlus, from_plane, to_plane

ADAPTERS: dict[str, type[Adapter3d]] = {}  # by name, in the order in which they are defined

QUIET = 0.1  # strength of the local path in a quiet start


class Adapter3d(nn.Module):
    """Base of the adapters: an adapter describes itself.

    Args:
        width: token width C.
        bottleneck: hidden width.

    Attributes:
        name: in plans, checkpoints and recipes.
        starts_from: names of other adapters whose weights :meth:`from_other` takes over.

    Shape:
        tokens: (B, D, H, W, C) -> (B, D, H, W, C), the residual included

    Raises:
        ValueError: if ``bottleneck`` is not positive.
    """

    name: ClassVar[str]
    starts_from: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"an adapter's bottleneck must be at least 1 wide, got {bottleneck}")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            known = ADAPTERS.get(cls.name)
            if known is not None and known.__qualname__ != cls.__qualname__:
                raise ValueError(f"two adapters are called {cls.name!r}: {known.__qualname__} and {cls.__qualname__}")
            ADAPTERS[cls.name] = cls

    def from_other(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a trained adapter of :attr:`starts_from` gives to this one, under this one's names.

        Args:
            weights: the other adapter's, by name.

        Returns:
            weights of this adapter; those that are left out keep their random start.
        """
        raise NotImplementedError(f"{self.name} adapters start from no other ones")

    def quieten(self) -> None:
        """Makes what :meth:`from_other` leaves at random weak at first; nothing by default."""


class OriginalAdapter3d(Adapter3d):
    """Bottleneck with a depthwise 3D convolution.

    Source: Gong et al., arXiv:2306.13465, section 3.2 (3DSAM-adapter).
    """

    name = "original"

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__(width, bottleneck)
        self.linear1 = nn.Linear(width, bottleneck)
        self.conv = Depthwise3x3x3(bottleneck)
        self.linear2 = nn.Linear(bottleneck, width)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = channels_first(F.relu(self.linear1(tokens)))
        hidden = channels_last(F.relu(self.conv(hidden)))
        return tokens + F.relu(self.linear2(hidden))


class OriginalWideAdapter3d(OriginalAdapter3d):
    """The original adapter with as many parameters as a DualPath adapter: the control of its size.

    Args:
        width: token width C.
        bottleneck: of the DualPath adapter that it is compared with; this one's is wider.
    """

    name = "original_wide"
    starts_from = ("original",)

    def __init__(self, width: int, bottleneck: int) -> None:
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in DualPathAdapter3d(width, bottleneck).parameters())
            per_unit = sum(parameter.numel() for parameter in OriginalAdapter3d(width, 1).parameters()) - width
        super().__init__(width, max(bottleneck, round((wanted - width) / per_unit)))

    def from_other(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The narrow adapter's units; the new ones' output weights are zero, so that the function is the same."""
        widened = {name: value.clone() for name, value in self.state_dict().items()}
        narrow = len(weights["linear1.bias"])
        for name in ("linear1.weight", "linear1.bias", "conv.weight", "conv.bias"):
            widened[name][:narrow] = weights[name]
        widened["linear2.weight"][:, :narrow] = weights["linear2.weight"]
        widened["linear2.weight"][:, narrow:] = 0
        widened["linear2.bias"] = weights["linear2.bias"]
        return widened


class DualPathAdapter3d(Adapter3d):
    """Bottleneck with a global 3x3x3 path, a local UNet++ path and a gate.

    The gate is computed from the global path alone and weighs the local path voxel by voxel and channel by channel;
    the sum of both is what the original adapter's convolution is there: without the local path, this is the original
    adapter.

    The local path works in planes. ``slice`` is the plane of H and W. ``published`` is that of W and D, in which the
    public implementation works, and its weights with it: its kernels are written for (D, H, W), its tokens are kept as
    (H, W, D). The plane is a part of the weights, so that a checkpoint brings its own.

    Source: 3DMedSAM-FDA's ``adapter_unetlocal``; Zhou et al., arXiv:1807.10165 (UNet++); Gong et al., arXiv:2306.13465
    (3DSAM-adapter).
    """

    name = "dualpath"
    starts_from = ("original",)
    in_public_code: ClassVar[bool] = True  # whether files of 3DMedSAM-FDA have it

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__(width, bottleneck)
        self.linear1 = nn.Linear(width, bottleneck)
        self.global_conv = Depthwise3x3x3(bottleneck)
        self.add_local_path(bottleneck)
        self.add_gate(bottleneck)
        self.linear2 = nn.Linear(bottleneck, width)
        self.register_buffer("published_plane", torch.zeros(()))
        self.published_plane: Tensor
        self.plane = SLICE
        self.register_load_state_dict_pre_hook(_refuse_convex_gate)
        self.register_load_state_dict_post_hook(lambda module, keys: module.read_plane())

    def add_local_path(self, width: int) -> None:
        """The modules of :meth:`local_path`."""
        self.local_unetpp = UNetPlusPlus(width)

    def add_gate(self, width: int) -> None:
        """The modules of :meth:`gate`."""
        self.fusion_gate = Pointwise3d(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        # in float32, since the local path's norms make small differences large, and with them what rounding did
        hidden = channels_first(F.relu(in_float32(self.linear1, tokens)))
        g = F.relu(in_float32(self.global_conv, hidden))
        local = from_plane(self.local_path(to_plane(hidden, self.plane)), self.plane)
        fused = self.fuse(g, local)
        return tokens + F.relu(self.linear2(channels_last(fused)))

    def local_path(self, hidden: Tensor) -> Tensor:
        """(B, mid, D, H, W) -> the same, the plane in the last two axes."""
        return self.local_unetpp(hidden)

    def gate(self, g: Tensor) -> Tensor:
        """Weights of the local path, 0 to 1, from the global one."""
        return torch.sigmoid(self.fusion_gate(g).to(g.dtype))

    def fuse(self, g: Tensor, local: Tensor) -> Tensor:
        """Both paths, (B, mid, D, H, W), in one."""
        return torch.addcmul(g, self.gate(g), local)

    def from_other(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An original adapter's: its convolution is the global path."""
        return {name.replace("conv.", "global_conv."): value for name, value in weights.items()}

    def quieten(self) -> None:
        """The local path at a tenth of its strength."""
        nn.init.constant_(self.local_unetpp.conv_0_1.norm.weight, QUIET)

    def set_plane(self, plane: str) -> None:
        """Chooses the plane of the local path, one of :data:`PLANES`."""
        self.plane = plane
        self.published_plane.fill_(plane == PUBLISHED)

    def read_plane(self) -> None:
        """The plane that the weights say."""
        if self.published_plane.device.type != "meta":
            self.plane = PUBLISHED if bool(self.published_plane) else SLICE


class DualPathNoGateAdapter3d(DualPathAdapter3d):
    """DualPath without gate, ``a = 1``: both paths are added as they are."""

    name = "dualpath_no_gate"
    in_public_code = False

    def add_gate(self, width: int) -> None:
        """None."""

    def gate(self, g: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(g)

    def fuse(self, g: Tensor, local: Tensor) -> Tensor:
        return g + local


class DualPathLocalOnlyAdapter3d(DualPathAdapter3d):
    """DualPath whose global path is left out of the sum and only opens the gate."""

    name = "dualpath_local_only"
    in_public_code = False

    def fuse(self, g: Tensor, local: Tensor) -> Tensor:
        return self.gate(g) * local


class DualPathConvAdapter3d(DualPathAdapter3d):
    """DualPath whose local path is a convolution in the plane and one across planes, both depthwise.

    Source: 3DMedSAM-FDA's ``adapter_convlocal``.
    """

    name = "dualpath_conv"

    def add_local_path(self, width: int) -> None:
        self.local_conv_2d = DepthwiseInPlane(width)
        self.local_conv_3d = DepthwiseAcrossSlices(width)

    def local_path(self, hidden: Tensor) -> Tensor:
        return F.relu(in_float32(self.local_conv_3d, F.relu(in_float32(self.local_conv_2d, hidden))))

    def quieten(self) -> None:
        with torch.no_grad():
            for parameter in self.local_conv_3d.parameters():
                parameter.mul_(QUIET)


class DualPathFFTAdapter3d(DualPathAdapter3d):
    """DualPath whose local path amplifies high frequencies of the whole patch.

    Source: 3DMedSAM-FDA's ``adapter_fftlocal``.
    """

    name = "dualpath_fft"

    def add_local_path(self, width: int) -> None:
        self.local_fft = HighFrequencies(width)

    def local_path(self, hidden: Tensor) -> Tensor:
        return self.local_fft(hidden)

    def quieten(self) -> None:
        nn.init.constant_(self.local_fft.norm.weight, QUIET)


def has_convex_gate(names: Any) -> bool:
    """Whether names of weights are those of DualPath adapters before version 0.2, which were another function."""
    return any(str(name).endswith("adapter.gate.weight") for name in names)


CONVEX_GATE = (
    "it holds DualPath adapters of nnunetv2_sam3d 0.1, whose gate mixed two paths, a * g + (1 - a) * x01. Those of "
    "this version are the published ones, which are another function, and no conversion leads from one to the other. "
    "Train again, or use nnunetv2_sam3d 0.1.0 for this file"
)


def _refuse_convex_gate(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    if f"{prefix}gate.weight" in state:
        raise ValueError(f"The checkpoint cannot be loaded: {CONVEX_GATE}.")


def make_adapter(name: str, width: int, bottleneck: int, plane: str) -> Adapter3d:
    """An adapter by its name.

    Raises:
        ValueError: for a name that no adapter has, naming those there are.
    """
    adapter = ADAPTERS[check_adapter(name)](width, bottleneck)
    if isinstance(adapter, DualPathAdapter3d):
        adapter.set_plane(plane)
    return adapter


def check_adapter(name: Any) -> str:
    """The name, if an adapter has it; ValueError otherwise."""
    if name not in ADAPTERS:
        raise ValueError(f"adapter must be one of {tuple(ADAPTERS)}, got {name!r}")
    return name
