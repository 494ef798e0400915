"""What the adapters' two paths say, epoch by epoch, in nnU-Net's log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.adapter_paths import LOG_KEY, recorded_paths, two_path_adapters
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D


class AdapterLog:
    """Measures the paths on the first batch of each validation epoch.

    Adapters without two paths leave the log as it is.

    Args:
        active: whether this process keeps the log.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self._blocks: list[dict[str, Any]] | None = None

    def measure(self, network: SAM3D, data: Tensor, device: torch.device) -> None:
        """Lets the encoder see a batch once more, if it is the epoch's first.

        Args:
            network: without wrappers, in evaluation mode.
            data: (B, C, D, H, W).
            device: the network's.
        """
        if self.active and self._blocks is None and two_path_adapters(network):
            with torch.no_grad(), recorded_paths(network) as records:
                network.encode(data.to(device))
            self._blocks = [record.metrics._asdict() for record in records.values()]

    def write(self, logging: dict[str, list[Any]], epoch: int, say: Callable[[str], None]) -> None:
        """Ends an epoch.

        Args:
            logging: nnU-Net's lists over epochs; those of a training that began without have empty entries first.
            epoch: from 0.
            say: writes a line into the text log.
        """
        if self._blocks is None:
            return
        blocks, self._blocks = self._blocks, None
        epochs = logging.setdefault(LOG_KEY, [])
        epochs += [[] for _ in range(epoch - len(epochs))]
        epochs[epoch:] = [blocks]
        for index, block in enumerate(blocks):
            say(
                f"Adapter of block {index}: gate {block['gate_mean']:.3f} (SD {block['gate_sd']:.3f}), "
                f"local path {block['local_share']:.3f} of the sum"
            )
