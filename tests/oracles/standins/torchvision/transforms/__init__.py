"""The one name that lerobot takes from here."""

from torchvision.transforms import v2 as v2


class ToTensor:
    """PIL image → float tensor (C, H, W) in [0, 1]."""

    def __call__(self, picture):
        import numpy as np
        import torch

        return torch.from_numpy(np.array(picture, np.float32) / 255).movedim(-1, 0)
