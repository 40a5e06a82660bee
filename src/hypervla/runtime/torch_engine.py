"""Engines run the shared backbone and the base policy on given weights. Eager PyTorch is the reference."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import nn

from hypervla import checkpoint
from hypervla.models.generated import fixed_noise
from hypervla.models.hypervla import HyperVLAConfig
from hypervla.runtime.slots import NamedWeights, Slots
from hypervla.runtime.task_policy import Prediction


class TorchEngine:
    """Eager PyTorch; an Engine."""

    takes_views = False

    def __init__(self, backbone: nn.Module, config: HyperVLAConfig, backbone_digest: str, device: str) -> None:
        self.backbone, self.policy = backbone, config.base_policy()
        self.backbone_digest, self.layout = backbone_digest, self.policy.layout
        self.image_size = config.backbone.image_size
        self.reads_proprio = config.policy.proprio_size > 0
        self.most_policies = sys.maxsize
        self.device = torch.device(device)

    @staticmethod
    def load(folder: Path, device: str = "cpu") -> TorchEngine:
        """The engine of a checkpoint, without its hypernetwork. Raises UserError for a damaged checkpoint."""
        backbone, about, digest = checkpoint.load_backbone(folder, device)
        return TorchEngine(backbone, about.hypervla(), digest, device)

    def form(self, weights: NamedWeights) -> NamedWeights:
        """As they are."""
        return weights

    @torch.inference_mode()
    def run(
        self,
        slots: Slots,
        images: UInt8[np.ndarray, "N C h w 3"],
        proprio: Float32[np.ndarray, "N P"] | None,
    ) -> Prediction:
        """Normalised chunks of N task policies, each on its own observation."""
        began = time.perf_counter()
        pixels = torch.from_numpy(images).to(self.device)
        tokens = self.backbone(pixels.flatten(0, 1))[0].unflatten(0, images.shape[:2]).flatten(1, 2).unsqueeze(1)
        self._finish()
        middle = time.perf_counter()
        state = None if proprio is None else torch.from_numpy(proprio).to(self.device).unsqueeze(1)
        named = {name: torch.from_numpy(rows).to(self.device) for name, rows in slots.named.items()}
        chunks = self.policy.act(named, tokens, state, fixed_noise(self.device))[:, 0].cpu().numpy()
        return Prediction(chunks, middle - began, time.perf_counter() - middle)

    def _finish(self) -> None:
        """Wait for the device, so that the stages are timed as they ran."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
