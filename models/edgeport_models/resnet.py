"""torchvision's ResNet18 with a head of its own, for transfer learning."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ResNet, ResNet18_Weights
from torchvision.models.resnet import BasicBlock

from .errors import NetworkError
from .weights import load_state
from .weights_file import read_weights


class ResNet18(ResNet):  # type: ignore[misc]  # torchvision ships no types
    """ResNet18 (He et al. 2015, arXiv:1512.03385) whose `fc` is Linear(512, num_classes). Keys are torchvision's.

    float (B, 3, H, W) -> logits float (B, num_classes), H and W from SMALLEST_PX up.
    `weights`: "imagenet" (downloaded by torchvision), "none", or the path of a .safetensors, .pt or .pth file.
    `frozen`: only `fc` learns; the backbone keeps its weights and its BatchNorm statistics.
    Raises NetworkError if the weights cannot be downloaded, CheckpointError if a file does not fit.
    """

    SMALLEST_PX = 32  # one position is left after the five halvings

    def __init__(self, *, num_classes: int = 10, weights: str = "imagenet", frozen: bool = False) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
        if weights == "imagenet":
            self.load_state_dict(_imagenet())
        elif weights != "none":
            found = read_weights(Path(weights))
            self.fc: nn.Module = nn.Identity()  # the file's own head, of whatever size, is not wanted
            body = {key: value for key, value in found.tensors.items() if not key.endswith(("fc.weight", "fc.bias"))}
            load_state(self, replace(found, tensors=body), name=weights)
        self.fc = nn.Linear(512, num_classes)
        self.frozen = frozen
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not frozen or name.startswith("fc."))

    def train(self, mode: bool = True) -> "ResNet18":
        super().train(mode and not self.frozen)
        self.training = mode
        return self


def _imagenet() -> dict[str, torch.Tensor]:
    try:
        return dict(ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise NetworkError(
            f"ResNet18's ImageNet weights could not be downloaded ({error}); give a local file with --weights FILE, or start from scratch with --weights none"
        ) from error
