"""Fixtures for the device side: the stored bundles, copied where a test alters them. Nothing here needs torch or onnx."""

import shutil
from pathlib import Path

import pytest

STORED = Path(__file__).parents[1] / "fixtures" / "format1"


@pytest.fixture(scope="session")
def classifier() -> Path:
    return STORED / "classifier"


@pytest.fixture(scope="session")
def generator() -> Path:
    return STORED / "generator"


@pytest.fixture
def altered(classifier: Path, tmp_path: Path) -> Path:
    """A copy of the classifier's bundle that a test may change."""
    return Path(shutil.copytree(classifier, tmp_path / "bundle"))
