"""The networks that edgeport comes with, the data they learn from, and how they are trained and stored."""

from .attention import AttentionNet
from .checkpoint import Card
from .cnn import CNN
from .datasets import Data, load_data
from .errors import CheckpointError, DataError, NetworkError, TrainingError
from .generator import Generator, PatchDiscriminator
from .layers import AdaptiveAttention2d, ConvLayer, DepthwiseSeparableConv2d, SelfAttention2d
from .pyramid import Detector, Segmenter
from .registry import NETWORKS, Network, Recipe, network
from .resnet import ResNet18
from .training import train

__all__ = [
    "CNN",
    "NETWORKS",
    "AdaptiveAttention2d",
    "AttentionNet",
    "Card",
    "CheckpointError",
    "ConvLayer",
    "Data",
    "DataError",
    "DepthwiseSeparableConv2d",
    "Detector",
    "Generator",
    "Network",
    "NetworkError",
    "PatchDiscriminator",
    "Recipe",
    "ResNet18",
    "Segmenter",
    "SelfAttention2d",
    "TrainingError",
    "load_data",
    "network",
    "train",
]


def __dir__() -> list[str]:
    return __all__
