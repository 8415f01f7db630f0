"""A model repository for NVIDIA's Triton Inference Server, whose onnxruntime backend runs the file as it is.

    REPOSITORY/NAME/config.pbtxt      types, sizes, batching, instances, warm-up
    REPOSITORY/NAME/1/model.onnx
    REPOSITORY/NAME/warmup/INPUT      a golden image, so that the first request is no slower than the others
    REPOSITORY/NAME/labels.txt        of a classifier

Triton reads wrong sizes and a negative batch without a complaint, and fails later. So the configuration is held to the ONNX file here, before it is written
and whenever somebody asks (`edgeport deploy check`). Optimization stays as Triton has it: its levels are others than onnxruntime's (see the README of
triton-inference-server/onnxruntime_backend).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edgeport_export.errors import ExportError
from edgeport_runtime import Bundle, Contract, ContractError, InputError
from edgeport_runtime.contract import METADATA_KEY
from edgeport_runtime.engine import has_rows
from edgeport_runtime.golden_inputs import formula_inputs

from .deployment import chosen_variant, deployment, gathered_batch, served_name
from .golden_sets import stored_sets
from .text_format import Block, TextFormatError, quoted, read_blocks

TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.UINT16: "TYPE_UINT16",
    onnx.TensorProto.INT16: "TYPE_INT16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}
ITEM_BYTES = {name: onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for kind, name in TYPES.items()}
CONFIG, MODEL, LABELS, WARMUP = "config.pbtxt", "1/model.onnx", "labels.txt", "warmup"
SINGLE, DELAY = ("name", "backend", "platform", "max_batch_size", "dynamic_batching", "version_policy"), "max_queue_delay_microseconds"
INSTANCE_KINDS = ("KIND_AUTO", "KIND_CPU", "KIND_GPU", "KIND_MODEL")
DELAY_US = 500  # for which a request may wait for others


def deploy_triton(
    bundle: Bundle,
    out: Path,
    *,
    name: str | None = None,
    precision: str | None = None,
    gpu: bool = False,
    instances: int = 1,
    delay_us: int = DELAY_US,
    force: bool = False,
) -> Path:
    """Write a repository with one model, `name` or the bundle's. `precision`: None takes what "auto" takes for its largest batch, and fp32 on a GPU, where
    int8's kernels are others. `gpu`, `instances`: where it runs, and how often at a time. `delay_us`: for which a request may wait for others.

    Raises InputError, OutputError, and ExportError if the configuration does not fit the file.
    """
    contract = bundle.manifest.contract
    name = served_name(bundle, name)
    if instances < 1 or delay_us < 0:
        raise InputError(f"expected at least one instance and a delay of at least 0 µs, got {instances} and {delay_us}")
    batch = gathered_batch(bundle)
    variant = chosen_variant(bundle, precision or ("fp32" if gpu else None), batch=batch or 1)
    model = bundle.read(variant)
    graph = onnx.load_from_string(model)
    warmup = _warmup(bundle, variant.precision)
    text = config(name, graph, contract, batch, warmup, gpu=gpu, instances=instances, delay_us=delay_us)
    if faults := config_faults(text, graph):
        raise ExportError(f"the configuration does not fit the file, so nothing was written: {faults[0]}")
    with deployment(out, "triton", bundle, variant.precision, force=force) as folder:
        place = folder / name
        (place / WARMUP).mkdir(parents=True)
        (place / MODEL).parent.mkdir()
        (place / MODEL).write_bytes(model)
        (place / CONFIG).write_text(text, encoding="utf-8")
        for each, values in warmup.items():
            (place / WARMUP / each).write_bytes(np.ascontiguousarray(values).tobytes())
        if contract.labels:
            (place / LABELS).write_text("".join(f"{' '.join(label.split())}\n" for label in contract.labels), encoding="utf-8")
    return out / name


def config(
    name: str,
    model: onnx.ModelProto,
    contract: Contract,
    batch: int,
    warmup: Mapping[str, NDArray[Any]],
    *,
    gpu: bool = False,
    instances: int = 1,
    delay_us: int = DELAY_US,
) -> str:
    """The text of config.pbtxt. `batch`: 0 for none. `warmup`: one image's values by input."""
    labeled = contract.outputs[0].name if contract.labels and contract.outputs[0].kind == "logits" else None
    lines = [f"name: {quoted(name)}", 'backend: "onnxruntime"', f"max_batch_size: {batch}"]
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for each in values:
            extra = f" label_filename: {quoted(LABELS)}" if each.name == labeled and kind == "output" else ""
            lines.append(f"{kind} [ {{ name: {quoted(each.name)} data_type: {_type(each)} dims: {_dims(each, batch)}{extra} }} ]")
    if batch > 1:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}")
    lines.append(f"instance_group [ {{ count: {instances} kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }} ]")
    lines.append("version_policy { latest { num_versions: 1 } }")
    rows, inputs = min(batch, 1), list[str]()
    for each, values in warmup.items():
        sizes = f"data_type: {_type(_named(model, each))} dims: {list(values.shape[rows:])}"
        inputs.append(f"inputs {{ key: {quoted(each)} value: {{ {sizes} input_data_file: {quoted(each)} }} }}")
    lines.append(f'model_warmup [ {{ name: "golden" batch_size: 1 {" ".join(inputs)} }} ]')
    return "\n".join(lines) + "\n"


def config_faults(text: str, model: onnx.ModelProto) -> list[str]:
    """Where a configuration does not fit the file, in words; empty if it does. What Triton accepts and then fails on is what this is for."""
    try:
        read = read_blocks(text)
    except TextFormatError as error:
        return [str(error)]
    batch, most = _whole(read, "max_batch_size", 0), _promised_batch(model)
    found = [] if batch >= 0 else [f"max_batch_size is {batch}, expected 0 or more"]
    found += [f"max_batch_size is {batch}, and the model promises at most {most}"] if most is not None and batch > max(most, 0) else []
    found += [f"{key} is given {len(read[key])} times" for key in SINGLE if len(read.get(key, [])) > 1]
    found += [f"max_queue_delay_microseconds is {each}" for block in _blocks(read, "dynamic_batching") if (each := _whole(block, DELAY, 0)) < 0]
    found += [
        f"an instance_group has the kind {each}" for group in _blocks(read, "instance_group") if (each := _first(group, "kind")) not in (None, *INSTANCE_KINDS)
    ]
    if _first(read, "backend") != "onnxruntime" and _first(read, "platform") != "onnxruntime_onnx":
        found.append("the backend is not onnxruntime")
    if "dynamic_batching" in read and batch <= 1:
        found.append(f"dynamic_batching needs a max_batch_size of more than 1, got {batch}")
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        given = {str(_first(each, "name")): each for each in _blocks(read, kind)}
        names = [each.name for each in values]
        found += [f"{kind} {each!r} is not in the ONNX file, which has {', '.join(names)}" for each in given if each not in names]
        if kind == "input":
            found += [f"input {each!r} of the ONNX file is missing" for each in names if each not in given]
        for each in values:
            if each.name in given:
                found += _tensor_faults(kind, given[each.name], each, batch)
    found += [f"an instance_group has the count {each}" for group in _blocks(read, "instance_group") if (each := _whole(group, "count", 1)) < 1]
    return found


def _promised_batch(model: onnx.ModelProto) -> int | None:
    """From the contract that edgeport's files carry; None in others."""
    stored = {each.key: each.value for each in model.metadata_props}.get(METADATA_KEY)
    try:
        return None if stored is None else Contract.from_json(stored).largest_batch
    except ContractError:
        return None


def repository_faults(folder: Path) -> list[str]:
    """Of every model in a repository: its configuration beside its files. Raises FormatError for a folder without models."""
    found = []
    for text in sorted(folder.glob(f"*/{CONFIG}")):
        place = text.parent
        content = text.read_text(encoding="utf-8", errors="replace")
        try:
            faults = config_faults(content, onnx.load(place / MODEL))
        except (OSError, DecodeError):
            faults = [f"{MODEL} cannot be read"]
        faults += [f"version {each.name} has no model.onnx" for each in sorted(place.iterdir()) if each.name.isdigit() and not (each / "model.onnx").is_file()]
        if not faults:
            read = read_blocks(content)
            if _first(read, "name") != place.name:
                faults.append(f"the name is {_first(read, 'name')!r}, and the folder's is {place.name!r}")
            faults += _file_faults(read, place)
        found += [f"{place.name}: {fault}" for fault in faults]
    return found


def _file_faults(read: Block, place: Path) -> list[str]:
    """Labels and warm-up files that are missing or of another size."""
    named = [str(each["label_filename"][0]) for each in _blocks(read, "output") if "label_filename" in each]
    found = [f"the labels {each} are missing" for each in named if not (place / each).is_file()]
    for warmup in _blocks(read, "model_warmup"):
        for entry in _blocks(warmup, "inputs"):
            (value,) = _blocks(entry, "value")
            if "input_data_file" not in value:
                continue
            file = place / WARMUP / str(value["input_data_file"][0])
            wanted = int(np.prod([int(each) for each in value.get("dims", [])])) * ITEM_BYTES[str(_first(value, "data_type"))]
            held = file.stat().st_size if file.is_file() else None
            if held != wanted:
                found.append(f"the warm-up file {file.name} has {'no' if held is None else f'{held:,}'} bytes, expected {wanted:,}")
    return found


def _tensor_faults(kind: str, given: Block, value: onnx.ValueInfoProto, batch: int) -> list[str]:
    found = []
    if _first(given, "data_type") != _type(value):
        found.append(f"{kind} {value.name!r} has the data_type {_first(given, 'data_type')}, the ONNX file has {_type(value)}")
    axes = value.type.tensor_type.shape.dim
    if batch and (not axes or not axes[0].dim_param):
        found.append(f"{kind} {value.name!r} has no first axis that is dynamic in the ONNX file, so max_batch_size must be 0, got {batch}")
    elif (dims := [int(each) for each in given.get("dims", [])]) != _dims(value, batch):
        found.append(f"{kind} {value.name!r} has the dims {dims}, the ONNX file has {_dims(value, batch)}{' after the batch' if batch else ''}")
    return found


def _type(value: onnx.ValueInfoProto) -> str:
    return TYPES[value.type.tensor_type.elem_type]


def _dims(value: onnx.ValueInfoProto, batch: int) -> list[int]:
    """-1 for a dynamic axis. With batches the first axis is Triton's own."""
    axes = [-1 if each.dim_param or not each.dim_value else each.dim_value for each in value.type.tensor_type.shape.dim]
    return axes[1:] if batch else axes


def _named(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    found: onnx.ValueInfoProto = next(each for each in model.graph.input if each.name == name)
    return found


def _warmup(bundle: Bundle, precision: str) -> dict[str, Any]:
    """One image of the first golden case; made by the formula if the bundle stores none."""
    contract, stored = bundle.manifest.contract, stored_sets(bundle, precision)
    smallest = {name: each.low for name, each in contract.axes.items()}
    inputs: Mapping[str, NDArray[Any]] = stored[0].inputs if stored else formula_inputs(contract, smallest)
    return {name: values[:1] if has_rows(contract) else values for name, values in inputs.items()}


def _blocks(read: Block, key: str) -> Sequence[Block]:
    return [each for each in read.get(key, []) if isinstance(each, dict)]


def _first(read: Block, key: str) -> Any:
    return read.get(key, [None])[0]


def _whole(read: Block, key: str, otherwise: int) -> int:
    value = _first(read, key)
    return value if isinstance(value, int) else otherwise
