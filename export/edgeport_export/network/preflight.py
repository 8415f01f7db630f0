"""Before tracing: what would make a graph wrong or impossible, each as a sentence with its remedy, all at once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeport_export.errors import NetworkFailure, PreflightError
from edgeport_runtime import Contract, ContractError, Input, Output
from edgeport_runtime.engine import Arrays

from .contracts import PIXEL_AXES
from .module_hooks import module_hooks
from .reference import TorchReference, without_weights
from .size_sweep import MEMORY_BUDGET_BYTES, Sizes, measured_cost, own_sizes, sweep_inputs, sweep_sizes
from .wrapper import compared_outputs, flatten

LISTED = 5
ROW_TOLERANCE = 1e-6  # of the output's range, in float64: far above rounding, far below the effect of batch statistics
STEPS, LARGEST_STEP = (2, 4, 8, 16, 32, 64), 65  # and every divisor of the network's own sides up to there, such as 14 of 224
RESERVED = "edgeport."  # prefix of names inside the graph


def preflight(network: nn.Module, contract: Contract) -> TorchReference:
    """Check the modules, then run a copy of the network a few times. Returns that copy.

    Raises PreflightError listing every finding; NetworkFailure if the network does not accept a size that the contract promises; ContractError
    if its outputs are not the contract's.
    """
    check_modules(network, contract)
    reference = TorchReference(network, contract)
    check_behavior(reference)
    return reference


def check_modules(network: nn.Module, contract: Contract) -> None:
    """Look at weights, modules and names, without running anything. Raises PreflightError listing every finding."""
    if isinstance(network, torch.jit.ScriptModule):
        raise PreflightError("this is a scripted or traced module; give the nn.Module that it was made from")
    scripted = [name for name, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise PreflightError(f"{scripted[0]!r} in the network is a scripted or traced module; give the module that it was made from, before torch.jit")
    found = [*_weights(network), *_modules(network, contract), *_names(contract)]
    if found:
        raise PreflightError("; ".join(found))


def check_behavior(reference: TorchReference) -> None:
    """Run the network: outputs, sizes, memory of earlier calls, randomness, independence of the images of a batch.

    Raises PreflightError, NetworkFailure, ContractError.
    """
    _require_outputs(reference)
    _require_sizes(reference)
    found = list(_memory(reference)) or list(_randomness(reference))
    found = found or list(_batch_dependence(reference.double))  # randomness would look like it
    if found:
        raise PreflightError("; ".join(found))


def _weights(network: nn.Module) -> Iterator[str]:
    lazy = [name for name, tensor in network.named_parameters() if torch.nn.parameter.is_lazy(tensor)]
    if lazy:
        yield f"{_listed(lazy)} have no shape yet (lazy modules); run the network once on an input"
        return
    tensors = [*network.named_parameters(), *network.named_buffers()]
    devices = sorted({str(tensor.device) for _, tensor in tensors})
    if len(devices) > 1:
        yield f"the weights are on several devices ({', '.join(devices)}); move the whole network to one with .cpu()"
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors if tensor.is_floating_point()})
    if dtypes not in ([], ["float32"]):
        yield f"the weights are {', '.join(dtypes)}; export from float32 with .float()"
    bad = [name for name, tensor in tensors if tensor.is_floating_point() and tensor.device.type != "meta" and _is_spoilt(network, name, tensor)]
    if bad:
        yield f"NaN or infinite values in {_listed(bad)}; train again or load another checkpoint"
    empty = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if empty:
        yield f"{_listed(empty)} hold no values (meta device); load a checkpoint"


def _is_spoilt(network: nn.Module, name: str, tensor: Tensor) -> bool:
    """NaN anywhere. Infinity too, except in buffers that are no statistics: a mask for attention is made of it."""
    owner = network.get_submodule(name.rpartition(".")[0])
    may_be_infinite = name.rpartition(".")[2] in owner._buffers and not isinstance(owner, _BatchNorm)
    return bool(tensor.isnan().any()) if may_be_infinite else not bool(torch.isfinite(tensor).all())


def _modules(network: nn.Module, contract: Contract) -> Iterator[str]:
    if not any(torch.nn.parameter.is_lazy(tensor) for tensor in network.parameters()):
        training = [name or "the network" for name, module in without_weights(network).eval().named_modules() if module.training]
        if training:
            yield f"still in train mode after .eval(): {_listed(training)}; these override train(), so set their mode by hand"
    bare = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is None]
    if bare and contract.largest_batch > 1:
        yield (
            f"BatchNorm without running statistics in {_listed(bare)}: at inference each image would depend on the others of its batch; "
            "set track_running_stats=True and train, or fix the batch at 1"
        )


def _names(contract: Contract) -> Iterator[str]:
    """Names of inputs and outputs that the graph needs for itself."""
    ends: tuple[Input | Output, ...] = (*contract.inputs, *contract.outputs)
    taken = [each.name for each in ends if each.name.startswith(RESERVED)]
    if taken:
        yield f"names of inputs and outputs that begin with {RESERVED!r} are kept for the graph itself, got {_listed(taken)}; name them otherwise"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _at_own_size(contract: Contract, batch: int, seed: int = 0) -> Arrays:
    sizes = own_sizes(contract)
    if "batch" in sizes:
        sizes["batch"] = contract.axes["batch"].nearest(batch)
    return sweep_inputs(contract, sizes, seed)


def _require_outputs(reference: TorchReference) -> None:
    """One run at the contract's own size must give what it promises: number, kinds and shapes of the outputs. Raises ContractError."""
    contract, sizes = reference.contract, own_sizes(reference.contract)
    try:
        values = flatten(reference.answer(sweep_inputs(contract, sizes, seed=0)))
    except NetworkFailure as error:
        raise NetworkFailure(f"{error}; this is the size the contract gives: name the size that the network takes") from error
    if len(values) != len(contract.outputs):
        raise ContractError(f"the contract promises {len(contract.outputs)} outputs, but the network gives {len(values)}")
    faults = [fault for value, each in zip(values, contract.outputs, strict=True) for fault in _output_faults(value, each, sizes)]
    if faults:
        raise ContractError(f"the contract does not say what the network gives: {'; '.join(faults)}")


def _output_faults(value: Tensor, promised: Output, sizes: Sizes) -> Iterator[str]:
    shape: tuple[int | str, ...] = promised.shape
    dtype = str(value.dtype).removeprefix("torch.")
    if promised.kind == "pixels":  # made of what the network gives, float (N, C, H, W)
        shape, dtype = (shape[0], shape[3], *shape[1:3]), "uint8" if value.is_floating_point() else dtype
    unknown = [axis for axis in shape if isinstance(axis, str) and axis not in sizes and not axis.startswith("?")]
    if unknown:
        yield f"{promised.name!r} names the axis {', '.join(unknown)}, which no input has ('?' stands for a size that follows from others)"
    expected = [sizes.get(axis) if isinstance(axis, str) else axis for axis in shape]
    fits = len(expected) == value.ndim and all(want in (None, got) for want, got in zip(expected, value.shape, strict=True))
    if not fits or dtype != promised.dtype or value.ndim == 0:
        squeezed = " (a squeeze() without an axis drops a batch of one; name the axis)" if value.ndim < len(expected) and 1 in expected else ""
        yield f"{promised.name!r} is promised as {promised.dtype} {promised.shape}, but is {dtype} {tuple(value.shape)}{squeezed}"


def _require_sizes(reference: TorchReference) -> None:
    """PyTorch must run at every size of the sweep up to twice its own, and at both ends of axes that are no image's.

    Raises NetworkFailure, whose message names axes that work.
    """
    contract = reference.contract
    own, *others = sweep_sizes(contract)
    sequences = [name for name in own if name not in PIXEL_AXES]
    cost = measured_cost(reference.network, contract) if sequences else None
    ends = [{**own, name: end} for name in sequences for end in (contract.axes[name].low, contract.axes[name].high)]
    for sizes in [*others, *(each for each in ends if cost is not None and cost(each) <= MEMORY_BUDGET_BYTES)]:
        try:
            reference.run(sweep_inputs(contract, sizes, seed=0))
        except NetworkFailure as error:
            raise NetworkFailure(f"{error}; the network is bound to its size there: {_remedy(reference, own)}") from error


def _remedy(reference: TorchReference, own: Sizes) -> str:
    """Ranges of the sides, if the next size runs; else steps, if some run; else the axes that can stay dynamic."""
    axes = reference.contract.axes
    sides = [name for name in own if name != "batch"]
    batch = [f"batch={axes['batch'].low}..{axes['batch'].high}"] if "batch" in own else []
    if sides and _runs(reference, {**own, **{name: own[name] + axes[name].step for name in sides}}):
        ranges = {name: _range_that_runs(reference, own, name) for name in sides}
        large = all(name not in PIXEL_AXES or pair[1] == axes[name].high for name, pair in ranges.items())  # 16 to 19 px: a stem that divides by 4
        if large and all(_runs(reference, {**own, **{name: pair[end] for name, pair in ranges.items()}}) for end in (0, 1)):
            named = [f"{name}={low}..{high}{f':{axes[name].step}' if axes[name].step > 1 else ''}" for name, (low, high) in ranges.items()]
            return f"it runs at --dynamic {','.join([*batch, *named])}"
    step = next(iter(_steps_that_run(reference, own, sides)), None) if sides else None
    if step is None:
        return f"export it with --dynamic {','.join(batch) or 'batch=1..1'}"
    stepped = [f"{name}={axes[name].low + (own[name] - axes[name].low) % step}..{axes[name].high}:{step}" for name in sides]
    return f"it runs in steps of {step}, so try --dynamic {','.join([*batch, *stepped])}"


def _steps_that_run(reference: TorchReference, own: Sizes, sides: Sequence[str]) -> Iterator[int]:
    """Steps of the sides at which the network runs one and three steps beyond its own size, the smallest first."""
    divisors = {each for each in range(3, LARGEST_STEP) if all(own[name] % each == 0 for name in sides)}
    for step in sorted({*STEPS, *divisors}):
        if all(_runs(reference, {**own, **{name: own[name] + steps * step for name in sides}}) for steps in (1, 3)):
            yield step


def _range_that_runs(reference: TorchReference, own: Sizes, name: str) -> tuple[int, int]:
    """The limits of an axis, at most to twice an image's own size, found by halving: a table of positions ends somewhere."""
    sizes, ends = reference.contract.axes[name], []
    far = sizes.nearest(sizes.high if name not in PIXEL_AXES else min(sizes.high, 2 * own[name]))
    for end in (sizes.low, far):
        good, bad = own[name], end
        if _runs(reference, {**own, name: bad}):
            good = bad
        while abs(bad - good) > sizes.step:
            middle = sizes.nearest((good + bad) // 2)
            if middle in (good, bad):
                break
            good, bad = (middle, bad) if _runs(reference, {**own, name: middle}) else (good, middle)
        ends.append(sizes.high if good == far else good)  # further on the sweep decides
    return ends[0], ends[1]


def _runs(reference: TorchReference, sizes: Sizes) -> bool:
    try:
        reference.run(sweep_inputs(reference.contract, sizes, seed=0))
    except NetworkFailure:
        return False
    return True


def _memory(reference: TorchReference) -> Iterator[str]:
    """A buffer that one run changes and the next run's answer depends on. A cache without consequence is no finding."""
    arrays = _at_own_size(reference.contract, batch=2)
    before = {name: value.clone() for name, value in reference.network.named_buffers()}
    first = reference.run(arrays)
    changed = [name for name, value in reference.network.named_buffers() if name in before and not torch.equal(before[name], value)]
    second = reference.run(arrays) if changed else first
    if any(not np.array_equal(first[name], second[name], equal_nan=True) for name in first):
        yield f"the network changes {_listed(changed)} while it runs, and its next answer depends on that; let it do so in training alone (if self.training:)"


def _randomness(reference: TorchReference) -> Iterator[str]:
    """Two runs of one input must agree bit for bit, and in numbers; otherwise name the first module whose output differs or has NaN."""
    arrays = _at_own_size(reference.contract, batch=2)
    first = _module_outputs(reference, arrays)
    reference.run(_at_own_size(reference.contract, batch=2, seed=1))  # or a network that keeps its last input would have kept this one both times
    second = _module_outputs(reference, arrays)
    for (name, a), (_, b) in zip(first, second, strict=False):
        if any(not _same(x, y) for x, y in zip(a, b, strict=False)):
            yield (
                f"two runs of the same input differ, first in {name}: something random is active at inference (F.dropout without training=self.training?), "
                "or it keeps something from one call to the next; make it depend on self.training"
            )
            return
    nowhere = [name for name, outputs in first if any(bool(each.isnan().any()) for each in outputs)]
    if nowhere and any(np.isnan(each).any() for each in reference.run(arrays).values()):
        yield (
            f"the network gives NaN at an ordinary input, first in {nowhere[0]}, so nothing can be compared there "
            "(nn.MultiheadAttention does so if a boolean mask forbids a query everything; a mask of floats with -inf gives zeros)"
        )


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or (x.shape == y.shape and x.is_floating_point() and torch.allclose(x, y, rtol=0.0, atol=0.0, equal_nan=True))


def _module_outputs(reference: TorchReference, arrays: Arrays) -> list[tuple[str, list[Tensor]]]:
    """Outputs of every module in the order in which they finished."""
    seen: list[tuple[str, list[Tensor]]] = []
    with module_hooks(reference.network, returned=lambda name, output: seen.append((name, [each.clone() for each in _tensors(output)]))):
        reference.run(arrays)
    return seen


def _tensors(output: object) -> list[Tensor]:
    try:
        return flatten(output)
    except TypeError:  # a module may return anything
        return []


def _batch_dependence(reference: TorchReference) -> Iterator[str]:
    """Image i of a batch must give what it gives alone; batch statistics at inference break that."""
    contract = reference.contract
    if any(each.shape[0] != "batch" for each in contract.inputs) or contract.axes["batch"].high < 2 or contract.axes["batch"].low > 1:
        return
    arrays = _at_own_size(contract, batch=2)
    together = reference.run(arrays)
    first, last = (reference.run({name: array[part] for name, array in arrays.items()}) for part in (slice(0, 1), slice(1, 2)))
    for name, output in zip(compared_outputs(contract), contract.outputs, strict=True):
        if output.shape[:1] != ("batch",):
            continue
        if together[name].dtype.kind != "f":  # an index or a flag may flip by rounding alone
            continue
        spread = float(together[name].max() - together[name].min()) or 1.0
        alone = [each[name] for each in (first, last)]
        if any(each.shape != together[name][:1].shape for each in alone):
            continue  # the sweep says what its shape should be
        distance = max(float(abs(together[name][index].astype(float) - each[0].astype(float)).max()) for index, each in enumerate(alone))
        if distance > ROW_TOLERANCE * spread:
            yield (
                f"an image alone gives another {name} than in a batch (by {distance / spread:.1e} of its range): something is computed over "
                "the whole batch (batch statistics; a sum, norm, flip or roll without dim); use running statistics or name the axes, "
                "or fix the batch at 1 (--dynamic batch=1..1)"
            )
