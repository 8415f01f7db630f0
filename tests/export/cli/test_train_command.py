import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeport_export import OutputError
from edgeport_export.cli.app import main
from edgeport_export.cli.train_command import TrainingJob, run_training
from edgeport_export.progress import no_progress
from edgeport_models import DataError
from edgeport_models.checkpoint import read_card
from edgeport_models.weights_file import read_weights
from edgeport_runtime import InputError, load

pytestmark = pytest.mark.usefixtures("fixed_latencies")


def test_train_on_a_folder_of_your_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for label, level in (("night", 40), ("day", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(40):
            Image.fromarray(np.clip(generator.normal(level, 25, (24, 30, 3)), 0, 255).astype(np.uint8)).save(tmp_path / "data" / label / f"{index}.png")
    out = tmp_path / "mine.safetensors"
    assert main(["train", "cnn", "--data", f"folder:{tmp_path / 'data'}", "--epochs", "5", "--size", "16x16", "--out", str(out)]) == 0
    assert "100.00% accuracy" in capsys.readouterr().out
    assert main(["export", "cnn", "--checkpoint", str(out), "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["values"]["fp32"] == 1.0
    assert load(tmp_path / "b").contract.labels == ("day", "night")


def test_a_training_that_diverges_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cnn", "--epochs", "1", "--learning-rate", "1e9", "--out", str(tmp_path / "c.safetensors")]) == 2
    assert "the training diverged; lower the learning rate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_tells_how_it_was_trained(checkpoint: Path) -> None:
    card = read_card(checkpoint)
    assert (card.network, card.data, card.recipe["epochs"], card.arguments["num_classes"]) == ("cnn", "digits", 1, 10)


def test_the_same_seed_gives_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    run_training(TrainingJob(name="cnn", out=tmp_path / "a.safetensors", changes={"epochs": 1}), lambda *given: stages.append(given[:3]))
    first, second = read_weights(checkpoint).tensors, read_weights(tmp_path / "a.safetensors").tensors
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert [done for _, done, _ in stages] == list(range(1, stages[0][2] + 1)) and {name for name, _, _ in stages} == {"batches"}


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ({"arguments": {"weights": "none"}}, InputError, "cnn takes no --weights; leave it out"),
        ({"changes": {"epochs": 0}}, InputError, "at least 1 epoch"),
        ({"changes": {"batch": 1}}, InputError, "a batch of at least 2"),
        ({"changes": {"learning_rate": float("nan")}}, InputError, "a learning rate above 0"),
        ({"changes": {"seed": -1}}, InputError, "a seed from 0 to 2\\^63, got -1"),
        ({"size_px": (32, 48)}, InputError, "cnn is trained on squares, got --size 32x48; dynamic sides come with the export"),
        ({"out": Path("c.pt")}, OutputError, "checkpoints are written as .safetensors"),
        ({"data": "mnist"}, DataError, "got 'mnist'"),
    ],
    ids=str,
)
def test_a_job_that_makes_no_sense_is_refused_before_any_work(job: dict[str, object], error: type[Exception], message: str, tmp_path: Path) -> None:
    given = {"name": "cnn", "out": tmp_path / "c.safetensors", **job}
    with pytest.raises(error, match=message):
        run_training(TrainingJob(**given), no_progress)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="exists already; give another file with --out, or replace it with --force"):
        run_training(TrainingJob(name="cnn", out=tmp_path / "c.safetensors"), no_progress)
    assert (tmp_path / "c.safetensors").read_text() == "mine"
