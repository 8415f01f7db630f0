"""Hypothesis without a clock, because a shared machine may be slow at any moment, and with the same examples in every run.

`pytest --hypothesis-profile=new` looks for new ones: one that fails is then found by whoever looks, and not by an unrelated change.
"""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNN that has seen the digits for one epoch."""
    from edgeport_export.cli.train_command import TrainingJob, run_training  # not above: tests/runtime passes without torch
    from edgeport_export.progress import no_progress

    path = tmp_path_factory.mktemp("checkpoints") / "cnn.safetensors"
    run_training(TrainingJob(name="cnn", out=path, changes={"epochs": 1}), no_progress)
    return path
