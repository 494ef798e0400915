"""The two paths of DualPath adapters: how much each of them says, and the network without one of them.

All of these adapters join their paths in one place, :meth:`DualPathAdapter3d.fuse`. It is replaced there for a while,
on the adapters of one network, and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.adapters import DualPathAdapter3d
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

PATHS = ("local", "global")
LOG_KEY = "adapter_paths"  # in nnU-Net's log: a list over epochs of lists over blocks

Fuse = Callable[[Tensor, Tensor], Tensor]


class PathMetrics(NamedTuple):
    """What the paths of one adapter say.

    Attributes:
        gate_mean: over tokens and channels, 0 (shut) to 1.
        gate_sd: standard deviation over the same.
        local_share: norm of the gated local path over the norm of the sum of both paths, 0 to 1, since neither path is
            negative anywhere.
    """

    gate_mean: float
    gate_sd: float
    local_share: float


class PathRecord:
    """Sums over what has passed through one adapter.

    Attributes:
        sums: (4,), float64: of the gate, its square, the square of the gated local path and that of the sum.
        count: how many values are in them, tokens times channels.
    """

    def __init__(self, keep_tokens: bool = False) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.count = 0
        self._keep_tokens = keep_tokens
        self._slabs: list[Tensor] = []
        self._channels = 1

    @torch.no_grad()
    def add(self, gate: Tensor, local: Tensor, fused: Tensor) -> None:
        """Takes in one call of ``fuse``.

        Args:
            gate: (B, mid, D, H, W).
            local: the same shape, before the gate.
            fused: what the adapter has made of both paths.
        """
        exact = torch.float32 if gate.device.type == "mps" else torch.float64  # which knows no float64
        of_tokens = torch.stack(
            [
                gate.sum(1, dtype=exact),
                _squares(gate, exact),
                _squares(gate * local, exact),
                _squares(fused, exact),
            ]
        )
        self.sums += of_tokens.sum((1, 2, 3, 4)).cpu().double()
        self.count += gate.numel()
        self._channels = gate.shape[1]
        if self._keep_tokens:
            self._slabs.append(of_tokens[:, 0].cpu().double())

    @property
    def metrics(self) -> PathMetrics:
        """Over everything that was taken in, which is at least one token."""
        gate, squared, local, fused = self.sums.tolist()
        mean = gate / self.count
        share = (local / fused) ** 0.5 if fused else 0.0
        return PathMetrics(mean, max(squared / self.count - mean**2, 0.0) ** 0.5, share)

    @property
    def tokens(self) -> int:
        """How many tokens were taken in."""
        return self.count // self._channels

    @property
    def token_sums(self) -> Tensor:
        """Of one sample that has passed once, token by token: (4, D, H, W), see ``sums``."""
        return torch.cat(self._slabs, 1)  # on CPUs the adapters take one slab along D after the other

    def gate_map(self) -> Tensor:
        """Mean of the gate over the channels of each token, (D, H, W)."""
        return self.token_sums[0] / self._channels

    def share_map(self) -> Tensor:
        """Share of the local path in each token, (D, H, W)."""
        _, _, local, fused = self.token_sums
        return torch.where(fused > 0, local / fused, 0).sqrt()

    def include(self, other: PathRecord, tokens: Tensor) -> None:
        """Takes in those tokens of a record that a mask (D, H, W) shows; the record has kept them."""
        self.sums += other.token_sums[:, tokens].sum(1)
        self.count += int(tokens.sum()) * other._channels
        self._channels = other._channels


def two_path_adapters(network: SAM3D) -> dict[int, DualPathAdapter3d]:
    """The adapters that have two paths, by the number of their block; none for other adapters."""
    adapters = ((index, block.adapter) for index, block in enumerate(network.encoder.blocks))
    return {index: adapter for index, adapter in adapters if isinstance(adapter, DualPathAdapter3d)}


@contextmanager
def recorded_paths(
    network: SAM3D, records: dict[int, PathRecord] | None = None, *, keep_tokens: bool = False
) -> Iterator[dict[int, PathRecord]]:
    """Context in which a network notes what passes through its adapters; its results stay the same.

    Args:
        network: without wrappers of DDP or torch.compile.
        records: to go on with; new ones by default.
        keep_tokens: keep the metrics of every token, too, for a batch of one that passes once.

    Yields:
        records by the number of the block; none for adapters without two paths.
    """
    adapters = two_path_adapters(network)
    records = {index: PathRecord(keep_tokens) for index in adapters} if records is None else records

    def recording(index: int, adapter: DualPathAdapter3d, inner: Fuse) -> Fuse:
        def fuse(g: Tensor, local: Tensor) -> Tensor:
            fused = inner(g, local)
            with torch.no_grad():
                records[index].add(adapter.gate(g), local, fused)
            return fused

        return fuse

    with _replaced(adapters, recording):
        yield records


@contextmanager
def without(network: SAM3D, path: str) -> Iterator[None]:
    """Context in which one path, ``local`` or ``global``, is left out of every adapter's sum.

    Without the local path an adapter of both is the original one. Without the global path the gate still follows it.

    Raises:
        ValueError: for another path.
    """
    if path not in PATHS:
        raise ValueError(f"path must be one of {PATHS}, got {path!r}")

    def shortened(index: int, adapter: DualPathAdapter3d, inner: Fuse) -> Fuse:
        if path == "local":
            return lambda g, local: inner(g, torch.zeros_like(local))
        return lambda g, local: adapter.gate(g) * local

    with _replaced(two_path_adapters(network), shortened):
        yield


@contextmanager
def _replaced(
    adapters: Mapping[int, DualPathAdapter3d], make: Callable[[int, DualPathAdapter3d, Fuse], Fuse]
) -> Iterator[None]:
    """Gives the adapters another ``fuse``, made of the one they have."""
    before = {index: vars(adapter).get("fuse") for index, adapter in adapters.items()}
    try:
        for index, adapter in adapters.items():
            vars(adapter)["fuse"] = make(index, adapter, adapter.fuse)
        yield
    finally:
        for index, adapter in adapters.items():
            if before[index] is None:
                vars(adapter).pop("fuse", None)  # the class has its own
            else:
                vars(adapter)["fuse"] = before[index]


def _squares(values: Tensor, exact: torch.dtype) -> Tensor:
    """Sums of squares over the channels, (B, C, D, H, W) -> (B, D, H, W)."""
    return values.to(torch.promote_types(values.dtype, torch.float32)).square().sum(1, dtype=exact)
