"""Which of a file's tensors are the network's, and loading them as torch does.

Trainers put weights under keys (`state_dict`, `model`), wrappers put prefixes before names (`module.`), and averaged weights lie beside raw ones.
One rule finds them: of all places in the file, the one under which most of the network's names stand, with its shapes, is taken. If
several places are equally good, an averaged one is taken, because that is what its trainer evaluated; if that does not decide, the user is asked.
"""

import re
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import CheckpointError
from .weights_file import Weights, read_weights

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # parts of names that DataParallel, compile and FSDP add
AVERAGED = re.compile(r"(?:^|[^a-z])(?:ema|swa|averaged|average|avg|polyak)(?:$|[^a-z])")
TRAINING = re.compile(r"(?:^|\.)(?:optim\w*|\w*optimizer\w*|\w*scheduler\w*|\w*scaler|\w*rng\w*|callbacks|loops)\.")  # what else a trainer keeps
STATISTICS = re.compile(r"(?:\w*optim(?:izer)?s?(?:_\w+)?|(?:\w+_)?grad(?:ient)?s?(?:_\w+)?|exp_avg\w*|momentum(?:_buffers?)?)")  # no weights
LISTED = 10  # names in a message
HALF = 0.5  # of the network's tensors: a place with fewer is no rival
QUANTIZED = re.compile(r"(?:fake_quant|activation_post_process|_packed_params|zero_point)")
ADAPTERS = re.compile(r"(?:^|\.)lora_(?:A|B|embedding_A|embedding_B)\.|\.base_layer\.")


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Which tensors of a file were loaded. `place`: what stands before their names in the file, such as `model_ema.module`; None if nothing does.

    `passed_over`: other places with the same network's weights. `left_over`: names of tensors that belong to nothing in the network.
    `dtypes`: in which they are stored, if that is not float32. `unread`: classes in the file that were not made.
    `nameless`: places of averaged weights that were not read, since their names are not the network's, or they have none.
    """

    place: str | None
    averaged: bool = False
    passed_over: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    nameless: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = "the file's only names" if self.place is None else f"{'the averaged weights ' if self.averaged else ''}{self.place}"
        parts = [place]
        if self.passed_over:
            parts.append(f"and not {', '.join(self.passed_over)} (--weights-key takes another)")
        if self.left_over:
            parts.append(f"{len(self.left_over)} tensors are not the network's and were left: {_few(self.left_over, 3)}")
        if self.dtypes:
            parts.append(f"stored as {', '.join(self.dtypes)}, computed as float32")
        if self.nameless:
            parts.append(f"averaged weights at {_few(self.nameless, 3)} were not read: they lack the network's names; if you mean them, save them by name")
        if self.unread:
            parts.append(f"objects of {_few(self.unread, 3)} were not made")
        return "; ".join(parts)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to tell: one set of float32 tensors under the network's own names."""
        return self == LoadedWeights(place=None)


def load_checkpoint(module: nn.Module, path: str | Path, *, weights_key: str | None = None, strip_prefix: str | None = None) -> LoadedWeights:
    """Read a file and load it into the module, whole or not at all. Raises CheckpointError. See `load_state`."""
    return load_state(module, read_weights(path), name=path, weights_key=weights_key, strip_prefix=strip_prefix)


def load_state(
    module: nn.Module,
    weights: Weights | Mapping[str, Tensor],
    *,
    name: str | Path,
    weights_key: str | None = None,
    strip_prefix: str | None = None,
) -> LoadedWeights:
    """Load as `load_state_dict(strict=True)` does, after the network's own hooks renamed what they rename.

    `weights_key`: the place in the file, such as `model_ema`, or `model` for the raw weights. `strip_prefix`: what stands before every name there.
    A tensor that the module shares under several names may be given under one. `name`: of the file, for messages. Raises CheckpointError,
    which lists what is missing, unexpected and of another shape.
    """
    found = weights if isinstance(weights, Weights) else Weights(tensors=weights)
    wanted = module.state_dict()
    rivals = _places(found, wanted)
    if weights_key is None and strip_prefix is None:
        place, passed_over = _best(rivals, found, wanted, name)
    else:
        place, passed_over = _asked(rivals, found, weights_key, strip_prefix, name), ()
    state = _state_at(place, found, wanted)
    _load(module, state, wanted, name)
    near = tuple(_near(rivals, wanted))
    left = [each for each in found.tensors if not each.startswith((place, *near)) and not TRAINING.search(each) and not _is_statistic(each)] if place else []
    others = [*found.lists, *dict.fromkeys(each.rpartition(".")[0] for each in left)]
    dtypes = sorted({str(each.dtype).removeprefix("torch.") for each in state.values() if isinstance(each, Tensor) and each.is_floating_point()} - {"float32"})
    return LoadedWeights(
        place=place.removesuffix(".") or None,
        averaged=_averaged(place),
        passed_over=tuple(each.removesuffix(".") or "the names without a prefix" for each in passed_over),
        left_over=tuple(left),
        dtypes=tuple(dtypes),
        unread=found.unread,
        nameless=tuple(each for each in others if (_averaged(each) or each.endswith("shadow_params")) and not _is_statistic(each)),
    )


def _averaged(place: str) -> bool:
    return AVERAGED.search(re.sub(r"([a-z])([A-Z])", r"\1_\2", place).lower().replace("_", ".")) is not None


def _without_wrappers(parts: Sequence[str], wanted: Collection[str]) -> str:
    return ".".join(part for part in parts if part not in WRAPPERS or part in wanted)


def _parts_of(wanted: Iterable[str]) -> set[str]:
    """Every part of every name: a network may have a part called `module` itself."""
    return {part for key in wanted for part in key.split(".")}


def _places(found: Weights, wanted: Mapping[str, Any]) -> dict[str, set[str]]:
    """Each place in the file -> the network's names that stand there with the network's shapes. An optimizer's averages of gradients are no weights."""
    known = _parts_of(wanted)
    places: dict[str, set[str]] = defaultdict(set)
    for key, value in found.tensors.items():
        places[found.places.get(key, "")]  # a place is one even if nothing fits there
        parts = key.split(".")
        for start in range(len(parts)):
            name = _without_wrappers(parts[start:], known)
            if name in wanted and (parts[start] not in WRAPPERS or parts[start] in known) and _shape(value) == _shape(wanted[name]):
                places["".join(f"{part}." for part in parts[:start])].add(name)
    return {place: names for place, names in places.items() if not _is_statistic(place)}


def _is_statistic(place: str) -> bool:
    return any(STATISTICS.fullmatch(part) for part in place.split("."))


def _shape(value: Any) -> Any:
    return None if not isinstance(value, Tensor) or is_lazy(value) else value.shape


def _best(rivals: Mapping[str, set[str]], found: Weights, wanted: Mapping[str, Any], name: str | Path) -> tuple[str, tuple[str, ...]]:
    """The place with most of the network's tensors, and the others that nearly have as many. Raises CheckpointError if nothing decides."""
    most = max(map(len, rivals.values()), default=0)
    first = [place for place, names in rivals.items() if len(names) == most]
    averaged = [place for place in first if _averaged(place)]
    choice = averaged if averaged else first
    if len(choice) > 1 and most > HALF * len(wanted) and not _all_equal([_state_at(place, found, wanted) for place in choice]):
        raise CheckpointError(
            f"{name}: the weights of this network stand at {len(choice)} places: {_few([place.removesuffix('.') or 'no prefix' for place in choice])}; "
            "say which with --weights-key or --strip-prefix"
        )
    return choice[0], tuple(place for place in _near(rivals, wanted) if place not in choice)


def _near(rivals: Mapping[str, set[str]], wanted: Mapping[str, Any]) -> list[str]:
    """The places with most of the network's tensors."""
    return [place for place, names in rivals.items() if len(names) > HALF * max(1, len(wanted))]


def _asked(rivals: Mapping[str, set[str]], found: Weights, weights_key: str | None, strip_prefix: str | None, name: str | Path) -> str:
    """The place that the user named. Raises CheckpointError if nothing stands there."""
    place = f"{weights_key}." if weights_key else ""
    if strip_prefix:
        place += strip_prefix if strip_prefix.endswith(".") else f"{strip_prefix}."
    if not any(key.startswith(place) for key in found.tensors):
        there = sorted({key.partition(".")[0] for key in found.tensors})
        raise CheckpointError(f"{name}: nothing in the file stands under {place.removesuffix('.')}; it holds {_few(there)}")
    inside = {each: len(names) for each, names in rivals.items() if each.startswith(place)}
    return place if strip_prefix is not None or not inside else max(inside, key=lambda each: inside[each])


def _state_at(place: str, found: Weights, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of one place, by the network's names, with torch's notes on versions. What lies in dicts further inside is not meant."""
    known = _parts_of(wanted)
    state: dict[str, Any] = OrderedDict()
    for key, value in found.tensors.items():
        inner = found.places.get(key, "")
        if key.startswith(place) and not (inner.startswith(place) and len(inner) > len(place)):
            state[_without_wrappers(key[len(place) :].split("."), known)] = value
    versions = {f"{where}{key}": note for where, notes in found.versions.items() for key, note in notes.items()}
    inside = {_without_wrappers(key[len(place) :].split("."), known): note for key, note in versions.items() if key.startswith(place)}
    if inside:
        state._metadata = inside  # type: ignore[attr-defined]  # where load_state_dict looks for it
    return state


def _all_equal(states: Sequence[Mapping[str, Any]]) -> bool:
    first, *others = states
    return all(each.keys() == first.keys() and all(_equal(each[key], first[key]) for key in first) for each in others)


def _equal(first: Any, second: Any) -> bool:
    return torch.equal(first, second) if isinstance(first, Tensor) and isinstance(second, Tensor) else first is second


def _load(module: nn.Module, state: dict[str, Any], wanted: Mapping[str, Any], name: str | Path) -> None:
    """Load as torch does; keys are compared after its hooks ran. Raises CheckpointError."""
    shaped = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in wanted
        if _shape(state.get(key)) is not None and _shape(wanted[key]) not in (None, state[key].shape)
    ]
    numbers = [
        f"{key} is {str(state[key].dtype).removeprefix('torch.')}, expected floats"
        for key, parameter in module.named_parameters()
        if isinstance(state.get(key), Tensor) and parameter.is_floating_point() and not state[key].is_floating_point()
    ]
    places = {tensor.data_ptr() for key, tensor in wanted.items() if key in state and _shape(tensor) is not None} - {0}
    missing, unexpected = [key for key in wanted if key not in state], [key for key in state if key not in wanted]
    if not shaped and not numbers:
        try:
            differing = module.load_state_dict(state, strict=False)
            missing, unexpected = differing.missing_keys, differing.unexpected_keys
        except Exception as error:  # a shape that a hook made, or whatever the network's own hooks raise
            shaped = [str(error).split("\n\t")[-1]]
    missing = [key for key in missing if not isinstance(wanted.get(key), Tensor) or is_lazy(wanted[key]) or wanted[key].data_ptr() not in places]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shaped, "no floats": numbers}
    listed = "; ".join(f"{len(keys)} {kind}: {_few(keys)}" for kind, keys in kinds.items() if keys)
    if listed:
        reason = _known_reason(state)
        raise CheckpointError(f"{name}: these are not the weights of {type(module).__name__} as it was built ({listed}); {reason}")


def _known_reason(state: Mapping[str, Any]) -> str:
    """What to do, for kinds of weights that are none of a plain network."""
    adapters, quantized = ([key for key in state if kind.search(key)] for kind in (ADAPTERS, QUANTIZED))
    if adapters:
        return f"they hold LoRA adapters beside their base, such as {adapters[0]}: merge them (`merge_and_unload()`) and save the state_dict"
    computed = [key for key in state if key.endswith("_orig")]
    if computed:
        return f"they hold what weights are computed from, such as {computed[0]}: bake them in (prune.remove, remove_spectral_norm) and save the state_dict"
    quantized += [key for key, value in state.items() if isinstance(value, Tensor) and value.dtype in (torch.int8, torch.uint8)]
    if quantized:
        return f"they are of a quantized network, such as {quantized[0]}: give the float weights, since edgeport makes int8 itself"
    return "give the checkpoint of this network, or other arguments"


def _few(names: Sequence[str], most: int = LISTED) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
