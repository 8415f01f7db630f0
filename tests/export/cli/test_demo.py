from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from edgeport_export import ParityError, load_source, verify
from edgeport_export.cli import demo
from edgeport_export.cli.demo import best_blur_db, run_without_torch, write_images
from edgeport_models import Data
from edgeport_runtime import Example, evaluate, load

STORED = Path(__file__).parents[2] / "fixtures" / "format1"


def test_held_out_images_are_written_as_eval_reads_them(tmp_path: Path) -> None:
    examples = [Example(source=np.full((16, 16, 3), level, np.uint8), truth=truth) for level, truth in ((30, 0), (220, 2), (225, 2))]
    folder = write_images(tmp_path / "images", ("dark", "middle", "bright"), examples)
    assert evaluate(load(STORED / "classifier", precision="fp32"), folder).value == 1.0
    quality = run_without_torch(STORED / "classifier", folder, "int8")
    assert (quality.metric, quality.value, quality.count) == ("accuracy", 1.0, 3)
    pairs = [Example(source=example.source, truth=example.source) for example in examples]
    folder = write_images(tmp_path / "images", (), pairs)
    assert sorted(p.name for p in folder.iterdir()) == ["input", "target"]
    assert run_without_torch(STORED / "generator", folder, "fp32").metric == "psnr_db"


def test_a_bundle_that_does_not_check_without_torch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="does not pass its golden cases without torch"):
        run_without_torch(tmp_path, tmp_path, "fp32")


def test_the_blur_to_beat_is_the_best_one() -> None:
    clean = np.kron(np.random.default_rng(0).integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    noisy = np.clip(clean + np.random.default_rng(1).normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
    data = Data(name="x", labels=(), train=[], calibration=[], test=[Example(source=noisy, truth=clean)])
    one_blur = gaussian_filter(noisy.astype(float), (1.0, 1.0, 0))
    its_psnr = 10 * np.log10(255**2 / np.mean((one_blur - clean) ** 2))
    assert best_blur_db(data) >= its_psnr
    assert best_blur_db(data) > 10 * np.log10(255**2 / np.mean((noisy.astype(float) - clean) ** 2))


@pytest.mark.long
def test_one_network_of_the_demo_goes_to_its_end_and_verifies_without_its_images_too(tmp_path: Path) -> None:
    """The attention network: int8 is 16 dB from fp32 on the pattern of the largest golden case, and 42 dB on digits. A sound bundle is not refused for it."""
    for part in ("checkpoints", "bundles", "held_out"):
        (tmp_path / part).mkdir()
    made = demo._one(tmp_path, "attention")
    assert made.bundle.folder == tmp_path / "bundles" / "attention"
    found = verify(made.bundle, load_source(tmp_path / "checkpoints" / "attention.safetensors").network)
    assert found, str(found)
    assert [each.kind for each in found.lossy] == ["golden"] and found.lossy[0].outputs[0].sqnr_db > 30
