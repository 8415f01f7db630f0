"""Networks by name from timm and torchvision, with the preprocessing, the labels and the weights that these libraries give them."""

import difflib
import importlib
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import torchvision
from torch import nn

from edgeport_models import NetworkError
from edgeport_models.detectors import detection_head, detector_pixels, require_one_stage
from edgeport_runtime import Pixels
from edgeport_runtime.errors import first_line

from .network.contracts import ImageTask, pixels_of_weights

LIBRARIES = ("timm", "torchvision")
CONNECTING_SECONDS = 3.0
PORTS = {"http": 80, "https": 443}
SEED = 0  # of random weights, so that `verify` finds the same
REFUSED = {
    "video": "videos are no images",
    "optical_flow": "it takes two images",
}


def is_library_name(name: str) -> bool:
    """True for `timm:NAME` and `torchvision:NAME`."""
    return name.partition(":")[0] in LIBRARIES and ":" in name


def library_model(name: str, *, classes: int | None, download: bool) -> tuple[nn.Module, ImageTask]:
    """A network in eval mode and its description. `classes`: of its head, as many as the library's if None. `download`: weights; else random ones.

    Raises NetworkError for an unknown name, a network of another kind, or weights that cannot be downloaded.
    """
    library, _, model = name.partition(":")
    torch.manual_seed(SEED)
    return (_timm if library == "timm" else _torchvision)(name, model, classes, download)


def _downloaded(name: str, make: Callable[[], nn.Module], download: bool) -> nn.Module:
    try:
        return make()
    except Exception as error:  # each library and each of its networks has its own
        if not download:
            raise NetworkError(f"{name}: the network cannot be built ({type(error).__name__}: {first_line(error)})") from error
        raise NetworkError(
            f"{name}: its weights could not be downloaded ({type(error).__name__}: {first_line(error)[:120]}); "
            "give a file with --checkpoint, or try the export with --random-weights"
        ) from error


@contextmanager
def _hub_asked_once() -> Iterator[None]:
    """Keep timm's hub from asking again and again for 50 seconds if it cannot be reached: what it has stored is taken, or nothing.

    Behind a proxy the hub is left to find out by itself.
    """
    hub: Any = importlib.import_module("huggingface_hub.constants")
    before, host = hub.HF_HUB_OFFLINE, urlsplit(hub.ENDPOINT)
    try:
        if not getproxies():
            socket.create_connection((host.hostname or "", host.port or PORTS.get(host.scheme, 443)), timeout=CONNECTING_SECONDS).close()
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _such_as(model: str, names: list[str]) -> str:
    near = difflib.get_close_matches(model, names)
    return f"; it has {', '.join(near)}" if near else ""


def _timm(name: str, model: str, classes: int | None, download: bool) -> tuple[nn.Module, ImageTask]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise NetworkError(f"{name}: timm cannot be imported ({error}); pip install timm") from error
    if not timm.is_model(model):
        raise NetworkError(f"{name}: timm {timm.__version__} has no such network{_such_as(model, timm.list_models())}")
    size = {} if classes is None else {"num_classes": classes}
    with _hub_asked_once() if download else nullcontext():
        network = _downloaded(name, lambda: timm.create_model(model, pretrained=download, **size), download)
    return network.eval(), ImageTask(task="classification", pixels=_timm_pixels(name, timm.data.resolve_model_data_config(network)))


def _timm_pixels(name: str, config: dict[str, Any]) -> Pixels:
    """What `timm.data.create_transform(**config)` does to an image in evaluation."""
    channels, height, width = config["input_size"]
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 1.0
    known = {"nearest", "bilinear", "bicubic", "lanczos"}
    if channels not in (1, 3) or height != width or config["interpolation"] not in known or (mode != "center" and not (mode == "squash" and share == 1)):
        raise NetworkError(f"{name}: its preprocessing ({config}) is none that edgeport knows; export it from a factory, with --size and --resize")
    rule: dict[str, Any] = {"resize": "stretch"} if mode == "squash" else {"resize": "crop", "resize_shorter_px": math.floor(height / share)}
    return Pixels(
        height=height,
        width=width,
        mode="RGB" if channels == 3 else "L",
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        **rule,
    )


def detector_task(detector: nn.Module, labels: tuple[str, ...] = ()) -> ImageTask:
    """The description of one of torchvision's detectors, under which its DetectorHeads are exported. Raises NetworkError."""
    return ImageTask(task="detection", pixels=detector_pixels(detector), labels=labels, detection=detection_head(detector))


def _detector(name: str, model: str, classes: int | None, download: bool) -> tuple[nn.Module, ImageTask]:
    """The detector itself, whose heads are taken after its weights are there."""
    models = torchvision.models
    weights = models.get_model_weights(model).DEFAULT
    labels = tuple(weights.meta["categories"])
    more: dict[str, Any] = {"weights": weights} if download else {"weights": None, "weights_backbone": None, "num_classes": classes or len(labels)}
    if download and classes not in (None, len(labels)):
        raise NetworkError(f"{name}: its own weights have {len(labels)} classes, the background among them, not {classes}; give yours with --checkpoint")
    network = _downloaded(name, lambda: models.get_model(model, **more), download).eval()
    require_one_stage(network)
    return network, detector_task(network, labels if classes in (None, len(labels)) else ())


def _torchvision(name: str, model: str, classes: int | None, download: bool) -> tuple[nn.Module, ImageTask]:
    models = torchvision.models
    if model not in models.list_models():
        raise NetworkError(f"{name}: torchvision {torchvision.__version__} has no such network{_such_as(model, models.list_models())}")
    for kind, reason in REFUSED.items():
        if model in models.list_models(module=getattr(models, kind)):
            raise NetworkError(f"{name}: {reason}; see what it is not for in the README")
    if model in models.list_models(module=models.quantization):
        raise NetworkError(f"{name}: a quantized network; export the float one of the same name, since edgeport makes int8 itself")
    weights = models.get_model_weights(model).DEFAULT
    if model in models.list_models(module=models.detection):
        return _detector(name, model, classes, download)
    segments = model in models.list_models(module=models.segmentation)
    size = {} if classes is None else {"num_classes": classes}
    more = {"weights_backbone": None} if segments and not download else {}
    if download and classes not in (None, len(weights.meta["categories"])):
        raise NetworkError(f"{name}: its own weights have {len(weights.meta['categories'])} classes, not {classes}; give yours with --checkpoint")
    network = _downloaded(name, lambda: models.get_model(model, weights=weights if download else None, **({} if download else size), **more), download)
    task = ImageTask(task="segmentation" if segments else "classification", pixels=pixels_of_weights(weights))
    labels = tuple(weights.meta["categories"])
    return network.eval(), replace(task, labels=labels) if classes in (None, len(labels)) else task
