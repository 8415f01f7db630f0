"""What people call a model: a bundle and its variant, a file and its engine, a factory and its checkpoint. One spelling for all: NAME@DETAIL.

bundles/mine            its fp32 variant             bundles/mine@int8        another one
bundles/mine@openvino   in another engine            bundles/mine@int8+openvino
plain.onnx              any ONNX file                plain.onnx@openvino
cnn.safetensors         what `edgeport train` wrote  my.nets:net@weights.pt   a network of your own, with its weights
"""

from pathlib import Path

from torch import nn

from edgeport_export.network.contracts import ImageTask, image_contract
from edgeport_export.options import PRECISIONS
from edgeport_export.sources import load_network, load_source
from edgeport_runtime import Bundle, InputError
from edgeport_runtime.bundle import MANIFEST

from .sides import ENGINES, GraphSide, NetworkSide, Side

Comparable = Side | Bundle | nn.Module | str | Path


def side_of(given: Comparable) -> Side:
    """Raises InputError for what is no model, and whatever loading it raises."""
    if isinstance(given, NetworkSide | GraphSide):
        return given
    if isinstance(given, nn.Module):
        return NetworkSide(name=type(given).__name__, network=given)
    if isinstance(given, Bundle):
        return GraphSide.of_bundle(given)
    if not isinstance(given, str | Path):
        raise InputError(f"expected a PyTorch network, a Bundle, or the name of a model, got {type(given).__name__}")
    return _named(str(given))


def _named(text: str) -> Side:
    name, _, detail = (text, "", "") if Path(text).exists() else text.partition("@")
    path = Path(name)
    if path.is_dir():
        if not (path / MANIFEST).exists() and (path / "model.onnx").exists():  # ONNX's own backend tests are laid out so
            side = GraphSide.of_file(path / "model.onnx", _engine(text, detail or ENGINES[0]))
            if side.contract is None:
                return side
        return _variant(text, Bundle(path), detail)
    if path.suffix == ".onnx":
        return GraphSide.of_file(path, _engine(text, detail or ENGINES[0]))
    if ":" in name and not path.exists():
        return _factory(name, detail or None)
    if not path.exists():
        raise InputError(f"{text}: there is no such bundle, ONNX file or checkpoint; a network of your own is named my.package:factory@weights.pt")
    source = load_source(path)
    return NetworkSide(name=text, network=source.network, contract=source.contract)


def _variant(text: str, bundle: Bundle, detail: str) -> Side:
    parts = [part for part in detail.split("+") if part]
    unknown = [part for part in parts if part not in (*PRECISIONS, *ENGINES)]
    if unknown:
        raise InputError(f"{text}: after the @ of a bundle comes a precision ({', '.join(PRECISIONS)}) or an engine ({', '.join(ENGINES)}), got {unknown[0]!r}")
    precision = next((part for part in parts if part in PRECISIONS), "fp32")
    return GraphSide.of_bundle(bundle, precision, next((part for part in parts if part in ENGINES), ENGINES[0]))


def _engine(text: str, detail: str) -> str:
    if detail not in ENGINES:
        raise InputError(f"{text}: after the @ of an ONNX file comes an engine, {' or '.join(ENGINES)}, got {detail!r}")
    return detail


def _factory(name: str, checkpoint: str | None) -> Side:
    """A factory may return its network alone: its contract is then the other side's, or the one that is given."""
    network, own, _ = load_network(name, checkpoint)
    contract = image_contract(network, own) if isinstance(own, ImageTask) else own
    return NetworkSide(name=f"{name}@{checkpoint}" if checkpoint else name, network=network, contract=contract)
