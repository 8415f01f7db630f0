"""A zoo of checkpoints as trainers leave them: what loads, and what is told. docs/checkpoints.md has a row for each."""

import argparse
import copy
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from edgeport_models import CheckpointError
from edgeport_models.weights import LoadedWeights, load_checkpoint, load_state

ROOT = Path(__file__).parents[2]
State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = head or nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.stem(x).mean((2, 3)))
        return answer


class Renamed(Net):
    """A network with a load hook of its own: the head was called `fc` once."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(module: nn.Module, state: State, prefix: str, *_: Any) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}fc.")]:
            state[key.replace("fc.", "head.", 1)] = state.pop(key)


def normed() -> Net:
    return Net(parametrizations.weight_norm(nn.Linear(8, 4)))


def drawn(net: nn.Module, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.rand(v.shape, generator=generator) + 0.5 if v.is_floating_point() else torch.tensor(9) for k, v in net.state_dict().items()}


GOOD, RAW, THIRD = drawn(Net(), 7), drawn(Net(), 8), drawn(Net(), 9)


def under(prefix: str, state: State = GOOD) -> State:
    return {prefix + key: value for key, value in state.items()}


def whole(state: State) -> Net:
    net = Net()
    net.load_state_dict(state)
    return net


class Custom:
    """A class of somebody's training code."""

    def __init__(self) -> None:
        self.lr = 0.1


class Executes:
    """Unpickling it runs code, unless nothing is executed."""

    def __init__(self, function: Any, argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> Any:
        return self.function, (self.argument,)


def optimizer(net: nn.Module | None = None) -> dict[str, Any]:
    used = net or Net()
    adam = torch.optim.Adam(used.parameters())
    used(torch.rand(1, 3, 8, 8)).sum().backward()
    adam.step()
    return adam.state_dict()


def averaged() -> State:
    model = AveragedModel(Net())
    model.load_state_dict({"n_averaged": torch.tensor(3), **under("module.")})
    return dict(model.state_dict())


OLD_NORMED = {
    key.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
    for key, value in drawn(normed(), 7).items()
}
HALVED = {key: value.bfloat16() if value.is_floating_point() else value for key, value in GOOD.items()}
MOCO = {"state_dict": {**under("encoder_q.", RAW), **under("encoder_k.")}}
PARAMETERS_ALONE = {key: value for key, value in RAW.items() if "running" not in key and "num_batches" not in key}

# name in the table of docs/checkpoints.md -> what is saved, what makes the network, what is loaded (None: GOOD), words that are told
LOADS: dict[str, tuple[Any, Callable[[], nn.Module], State | None, tuple[str, ...]]] = {
    "plain": (GOOD, Net, None, ()),
    "numbers beside": ({"state_dict": GOOD, "epoch": 3, "best": np.float64(0.3), "lr": np.float32(1), "sizes": np.arange(3)}, Net, None, ("numpy",)),
    "torchvision": (
        {"model": GOOD, "optimizer": optimizer(), "lr_scheduler": {"T": 3}, "epoch": 1, "args": argparse.Namespace(lr=0.1)},
        Net,
        None,
        ("model", "argparse.Namespace"),
    ),
    "torchvision EMA": ({"model": RAW, "model_ema": averaged(), "args": argparse.Namespace()}, Net, None, ("averaged", "model_ema.module", "not model")),
    "timm EMA": ({"arch": "net", "state_dict": RAW, "state_dict_ema": GOOD, "version": 2}, Net, None, ("averaged", "state_dict_ema", "not state_dict")),
    "BasicSR": ({"params": RAW, "params_ema": GOOD}, Net, None, ("averaged", "params_ema", "not params")),
    "BasicSR without EMA": ({"params": GOOD}, Net, None, ("params",)),
    "model and ema": ({"model": RAW, "ema": GOOD, "updates": 7}, Net, None, ("averaged", "ema", "not model")),
    "model and no ema": ({"model": GOOD, "ema": None}, Net, None, ("model",)),
    "ema.module": ({"model": RAW, "ema": {"module": GOOD, "updates": 3}}, Net, None, ("averaged", "ema.module")),
    "ema_state_dict": ({"state_dict": RAW, "ema_state_dict": {"n_averaged": torch.tensor(3), **under("module.")}}, Net, None, ("ema_state_dict.module",)),
    "ema_model beside online_model": ({**under("online_model.", RAW), **under("ema_model."), "initted": torch.tensor(True)}, Net, None, ("ema_model",)),
    "SWA": ({"model": RAW, "swa_model": averaged()}, Net, None, ("averaged", "swa_model.module")),
    "AveragedModel": (averaged(), Net, None, ("module", "n_averaged")),
    "averaged parameters alone": ({"model": GOOD, "model_ema": PARAMETERS_ALONE}, Net, None, ("not model_ema",)),
    "GAN": ({"G": RAW, "D": {"body.weight": torch.ones(3)}, "G_ema": GOOD}, Net, None, ("averaged", "G_ema", "not G")),
    "Lightning": ({"state_dict": under("model."), "epoch": 3, "callbacks": {Custom: {"best": 1.0}}, "hparams": Custom()}, Net, None, ("state_dict.model",)),
    "Lightning with a loss": ({"state_dict": {**under("model."), "criterion.pos_weight": torch.ones(1)}}, Net, None, ("1 tensors", "criterion.pos_weight")),
    "DeepSpeed": ({"module": GOOD, "dp_world_size": 8}, Net, None, ("module",)),
    "DataParallel": (under("module."), Net, None, ("module",)),
    "DataParallel of a part": ({key.replace("stem.", "stem.module."): value for key, value in GOOD.items()}, Net, None, ()),
    "compiled": (under("_orig_mod."), Net, None, ("_orig_mod",)),
    "compiled part": ({key.replace("stem.", "stem._orig_mod."): value for key, value in GOOD.items()}, Net, None, ()),
    "compiled DataParallel": ({"model": under("module._orig_mod.")}, Net, None, ("model.module._orig_mod",)),
    "no counters": ({key: value for key, value in GOOD.items() if "num_batches" not in key}, Net, None, ()),
    "old weight_norm": (OLD_NORMED, normed, drawn(normed(), 7), ()),
    "load hook": ({key.replace("head.", "fc."): value for key, value in GOOD.items()}, Renamed, None, ()),
    "load hook behind a prefix": ({f"module.{key.replace('head.', 'fc.')}": value for key, value in GOOD.items()}, Renamed, None, ("module",)),
    "LoRA merged": (under("base_model.model."), Net, None, ("base_model.model",)),
    "bfloat16": (
        {key: value.bfloat16() if value.is_floating_point() else value for key, value in GOOD.items()},
        Net,
        None,
        ("bfloat16", "computed as float32"),
    ),
    "averages of gradients": ({"model": GOOD, "optimizer": {"exp_avg": RAW, "exp_avg_sq": THIRD}, "grad_avg": RAW}, Net, None, ("model",)),
    "torch_ema": (
        {"model": GOOD, "ema": {"decay": 0.9, "shadow_params": list(RAW.values()), "collected_params": None}},
        Net,
        None,
        ("averaged weights at ema.shadow_params were not read",),
    ),
    "LitEma": (
        {"state_dict": {**under("model."), **{f"model_ema.{key.replace('.', '')}": value for key, value in RAW.items()}}},
        Net,
        None,
        ("averaged weights at state_dict.model_ema were not read",),
    ),
    "whole module": (whole(GOOD), Net, None, ("not made", "Net")),
    "whole modules, raw and EMA": ({"epoch": -1, "model": whole(RAW), "ema": whole(GOOD)}, Net, None, ("averaged", "ema", "not model")),
    "whole DataParallel": (nn.DataParallel(whole(GOOD)), Net, None, ("module",)),
    "the same twice": ({"state_dict": GOOD, "model": copy.deepcopy(GOOD)}, Net, None, ("state_dict",)),
    "somebody's objects": ({"state_dict": GOOD, "config": Custom(), "more": [Custom()]}, Net, None, ("Custom", "not made")),
    "code that would run": ({"state_dict": GOOD, "x": Executes(eval, "1/0")}, Net, None, ("eval", "not made")),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("form", LOADS)
def test_forms_that_load(tmp_path: Path, form: str, old: bool) -> None:
    saved, make, expected, words = LOADS[form]
    if old and form.startswith("whole"):
        pytest.skip("refused, see below")
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    net = make()
    loaded = load_checkpoint(net, tmp_path / "w.pth")
    wanted = GOOD if expected is None else expected
    if form == "bfloat16":
        wanted = {key: value.float() if value.is_floating_point() else value for key, value in HALVED.items()}
    assert all(torch.equal(value, wanted[key]) for key, value in net.state_dict().items() if "num_batches" not in key)
    assert [word for word in words if word not in str(loaded)] == []
    assert loaded.is_plain == (not words)


def sharded(folder: Path) -> Path:
    """As Accelerate leaves them: two files, their index, and the state of the training beside them."""
    names = list(GOOD)
    for index, part in enumerate((names[:3], names[3:])):
        save_file({key: GOOD[key] for key in part}, folder / f"model-0000{index + 1}-of-00002.safetensors")
    torch.save(optimizer(), folder / "optimizer.bin")
    weight_map = {key: f"model-0000{1 if key in names[:3] else 2}-of-00002.safetensors" for key in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / "model.safetensors.index.json"


def sharded_folder(folder: Path) -> Path:
    return sharded(folder).parent


def sharded_bin(folder: Path) -> Path:
    names = list(GOOD)
    for index, part in enumerate((names[:3], names[3:])):
        torch.save({key: GOOD[key] for key in part}, folder / f"pytorch_model-{index}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {key: f"pytorch_model-{int(key not in names[:3])}.bin" for key in names}}))
    return folder


def accelerate(folder: Path) -> Path:
    save_file(GOOD, folder / "model.safetensors")
    torch.save(optimizer(), folder / "optimizer.bin")
    torch.save({"step": 3}, folder / "scheduler.bin")
    (folder / "random_states_0.pkl").write_bytes(b"")
    return folder


@pytest.mark.parametrize("lay", [sharded, sharded_folder, sharded_bin, accelerate])
def test_folders_and_shards_that_load(tmp_path: Path, lay: Callable[[Path], Path]) -> None:
    net = Net()
    assert load_checkpoint(net, lay(tmp_path)).is_plain
    assert all(torch.equal(value, GOOD[key]) for key, value in net.state_dict().items())


def distributed(folder: Path) -> Path:
    (folder / "__0_0.distcp").touch()
    return folder


def lost_shard(folder: Path) -> Path:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


def shard_elsewhere(folder: Path) -> Path:
    (folder / "w.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    return folder / "w.index.json"


def index_of_something_else(folder: Path) -> Path:
    (folder / "w.index.json").write_text("[3]")
    return folder / "w.index.json"


def two_files(folder: Path) -> Path:
    for name in ("a.pt", "b.pt"):
        torch.save(GOOD, folder / name)
    return folder


def scripted(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        torch.jit.script(nn.Sequential(nn.Linear(3, 3))).save(folder / "w.pt")
    return folder / "w.pt"


def program(folder: Path) -> Path:
    torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.rand(1, 3),)), folder / "w.pt2")
    return folder / "w.pt2"


def keras(folder: Path) -> Path:
    (folder / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    return folder / "w.h5"


def written(content: bytes) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        (folder / "w.pth").write_bytes(content)
        return folder / "w.pth"

    return lay


def saved(value: Any, *, old: bool = False) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        torch.save(value, folder / "w.pth", _use_new_zipfile_serialization=not old)
        return folder / "w.pth"

    return lay


def runs_a_shell(folder: Path) -> Path:
    torch.save({"state_dict": GOOD, "x": Executes(os.system, f"touch {folder / 'ran'}")}, folder / "w.pth")
    return folder / "w.pth"


QAT = {  # the names that prepare_qat adds
    **GOOD,
    "head.weight_fake_quant.scale": torch.ones(1),
    "head.weight_fake_quant.zero_point": torch.zeros(1),
    "head.activation_post_process.activation_post_process.min_val": torch.zeros(1),
}


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "distributed": (distributed, r"a distributed checkpoint; make one file of it"),
    "a lost shard": (lost_shard, r"names the shard model-00002-of-00002\.safetensors, which does not lie beside it"),
    "a shard in another folder": (shard_elsewhere, r"which does not lie beside it"),
    "another index": (index_of_something_else, r"expected an index of shards"),
    "two files in a folder": (two_files, r"it holds a\.pt, b\.pt; name one of them"),
    "scripted": (scripted, r"a scripted module .* give the state_dict of the module before scripting"),
    "exported program": (program, r"an exported program .* give the state_dict"),
    "Keras": (keras, r"HDF5, as Keras writes it"),
    "web page": (written(b"<!DOCTYPE html><title>Not found</title>"), r"a web page, as a failed download leaves it"),
    "Git LFS": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"), r"a pointer of Git LFS, .*git lfs pull"),
    "image": (written(b"\x89PNG\r\n\x1a\n"), r"this file is an image"),
    "gzip": (written(b"\x1f\x8b\x08" + bytes(20)), r"compressed with gzip"),
    "empty": (written(b""), r"this file is empty"),
    "code of a shell": (runs_a_shell, r"the class or function posix\.system, which is not loaded"),
    "whole module of an old PyTorch": (saved(whole(GOOD), old=True), r"more than tensors"),
    "an object alone": (saved(Custom()), r"got .*objects of .*Custom, which are not made; save the module's state_dict"),
    "LoRA": (saved({**under("base_model.model."), "base_model.model.head.lora_A.default.weight": torch.ones(2, 8)}), r"LoRA adapters .* merge them"),
    "QAT": (saved(QAT), r"of a quantized network, such as .*: give the float weights"),
    "integers": (
        saved({key: (100 * value).to(torch.int8) for key, value in GOOD.items()}),
        r"stem\.0\.weight is int8, expected floats.*: give the float weights",
    ),
    "complex numbers": (saved({key: value.to(torch.complex64) for key, value in GOOD.items()}), r"stem\.0\.weight is complex64, expected floats"),
    "pruned": (
        saved({**{key.replace("head.weight", "head.weight_orig"): value for key, value in GOOD.items()}, "head.weight_mask": torch.ones(4, 8)}),
        r"what weights are computed from, such as head\.weight_orig: bake them in \(prune\.remove",
    ),
    "student and teacher": (saved({"student": RAW, "teacher": GOOD}), r"stand at 2 places: student, teacher; say which with --weights-key"),
    "encoder and its average": (saved({"encoder": RAW, "momentum_encoder": GOOD}), r"stand at 2 places: encoder, momentum_encoder; say which"),
    "query and key": (saved(MOCO), r"at 2 places: state_dict\.encoder_q, state_dict\.encoder_k"),
    "two averages": (saved({"model": THIRD, "ema_999": RAW, "ema_9999": GOOD}), r"stand at 2 places: ema_999, ema_9999"),
    "another network": (saved(drawn(nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(9))), 1)), r"18 unexpected: 0\.weight, .* and 8 more"),
    "counters of a profiler": (saved({**GOOD, "total_ops": torch.zeros(1)}), r"1 unexpected: total_ops"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_forms_that_are_refused(tmp_path: Path, form: str) -> None:
    lay, words = REFUSED[form]
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(net, lay(tmp_path))
    assert len(str(caught.value).replace(str(tmp_path), "")) < 700 and not (tmp_path / "ran").exists()
    assert form != "code of a shell" or all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "asked", "place"),
    [
        ({"model": GOOD, "model_ema": RAW}, {"weights_key": "model"}, "model"),
        ({"model": GOOD, "model_ema": averaged()}, {"weights_key": "model_ema"}, "model_ema.module"),
        ({"student": RAW, "teacher": under("backbone.")}, {"weights_key": "teacher"}, "teacher.backbone"),
        (MOCO, {"strip_prefix": "state_dict.encoder_k"}, "state_dict.encoder_k"),
        (
            {"state_dict": {**under("encoder_q.", RAW), **under("encoder_k.")}},
            {"weights_key": "state_dict", "strip_prefix": "encoder_k."},
            "state_dict.encoder_k",
        ),
    ],
)
def test_the_place_can_be_named(tmp_path: Path, saved: Any, asked: dict[str, str], place: str) -> None:
    torch.save(saved, tmp_path / "w.pth")
    net = Net()
    loaded = load_checkpoint(net, tmp_path / "w.pth", **asked)
    assert loaded.place == place and all(torch.equal(value, GOOD[key]) for key, value in net.state_dict().items())
    again = Net()  # what the provenance holds finds the same weights again
    assert load_checkpoint(again, tmp_path / "w.pth", strip_prefix=loaded.place).place == place
    with pytest.raises(CheckpointError, match="nothing in the file stands under optimizer; it holds "):
        load_checkpoint(net, tmp_path / "w.pth", weights_key="optimizer")


def test_a_buffer_that_is_not_stored_is_not_looked_for(tmp_path: Path) -> None:
    net = Net()
    net.register_buffer("mean", torch.ones(3), persistent=False)
    torch.save(net, tmp_path / "w.pth")
    other = Net()
    loaded = load_checkpoint(other, tmp_path / "w.pth")  # `mean` would be unexpected
    assert loaded.left_over == () and all(torch.equal(value, net.state_dict()[key]) for key, value in other.state_dict().items())


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """torch lets a BatchNorm of version 1 have no counter, and none of version 2."""
    state = OrderedDict((f"module.{key}", value) for key, value in GOOD.items() if "num_batches" not in key)
    state._metadata = {"module.stem.1": {"version": 2}}  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: stem\.1\.num_batches_tracked"):
        load_checkpoint(Net(), tmp_path / "w.pth")


class Tied(nn.Module):
    """A part called `module`, and a weight with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.again = nn.Linear(3, 3), nn.Linear(3, 3)
        self.again.weight = self.module.weight


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "net.model."])
def test_prefixes_go_where_they_do_not_fit_and_shared_weights_need_one_name(tmp_path: Path, prefix: str) -> None:
    made = Tied()
    expected = {"module.weight": torch.rand(3, 3), "module.bias": torch.rand(3), "again.bias": torch.rand(3)}
    save_file({prefix + key: value for key, value in expected.items()}, tmp_path / "w.safetensors")
    load_checkpoint(made, tmp_path / "w.safetensors")
    assert torch.equal(made.again.weight, expected["module.weight"]) and torch.equal(made.again.bias, expected["again.bias"])
    with pytest.raises(CheckpointError, match=r"2 missing: module\.weight, again\.weight"):
        load_state(Tied(), {"module.bias": torch.rand(3), "again.bias": torch.rand(3)}, name="w")


def test_every_kind_of_difference_is_told_at_once() -> None:
    state = dict(GOOD, **{"head.weight": torch.zeros(5, 8)})
    state["extra.weight"] = state.pop("head.bias")
    with pytest.raises(CheckpointError) as caught:
        load_state(Net(), state, name="w.pt")
    text = str(caught.value)
    for words in ("w.pt", "Net", "1 missing: head.bias", "1 unexpected: extra.weight", "1 of another shape: head.weight is (5, 8), expected (4, 8)"):
        assert words in text


def test_a_bare_mapping_loads() -> None:
    assert load_state(Net(), GOOD, name="w") == LoadedWeights(place=None)


def test_every_form_has_a_row_in_the_docs() -> None:
    rows = (ROOT / "docs" / "checkpoints.md").read_text()
    assert [form for form in (*LOADS, *REFUSED) if f"| {form} |" not in rows] == []
