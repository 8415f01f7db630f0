import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from edgeport_export.diagnosis.pipelines import Pipeline, find_pipeline
from edgeport_export.diagnosis.stages import StageBudget, made_up_files, stage_budget
from edgeport_export.network.reference import TorchReference
from edgeport_runtime import Bundle, Example

HALF = [0.5, 0.5, 0.5]


def by_name(budget: StageBudget) -> dict[str, float]:
    return {stage.name: stage.rms for stage in budget.stages}


def test_with_the_contracts_own_recipe_only_int8_contributes(bundle: Bundle, reference: TorchReference) -> None:
    found = stage_budget(bundle, reference, find_pipeline(None, bundle.manifest.contract.pixels))
    parts = by_name(found)
    assert list(parts) == ["decode", "resize", "normalize", "trace", "rewrite", "optimization", "provider", "int8"]
    assert found and found.largest.name == "int8" and all(share < 1e-4 for name, share in parts.items() if name != "int8")
    assert found.total.rms == pytest.approx(parts["int8"], rel=1e-2) and found.images == 6
    assert "int8 contributes most" in str(found) and found.to_dict()["passed"] is True


@pytest.mark.parametrize(
    ("steps", "stage"),
    [
        ([v2.Resize((16, 16), v2.InterpolationMode.NEAREST), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF)], "resize"),
        ([v2.Resize((16, 16)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.1, 0.5, 0.9], HALF)], "normalize"),
        ([v2.Resize((16, 16)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF), v2.Lambda(lambda t: t.flip(0))], "normalize"),
    ],
)
def test_a_pipeline_that_differs_is_found_at_its_stage(steps: list[object], stage: str, bundle: Bundle, reference: TorchReference) -> None:
    found = stage_budget(bundle, reference, Pipeline(name="mine", function=v2.Compose(steps)))
    parts = by_name(found)
    assert not found and found.largest.name == stage
    others = [share for name, share in parts.items() if name not in (stage, "int8")]
    assert parts[stage] > 10 * max(others) and found.total.rms == pytest.approx(parts[stage], rel=0.3)


def test_a_photograph_that_lies_on_its_side_is_the_decoders_part(bundle: Bundle, reference: TorchReference, tmp_path: Path) -> None:
    """The camera noted that it is to be turned, and `Image.open` leaves it lying."""
    wave = np.repeat(np.linspace(0, 255, 40, dtype=np.uint8)[:, None], 60, axis=1)
    image = Image.fromarray(np.stack([wave, wave, np.full_like(wave, 128)], axis=2))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    found = stage_budget(bundle, reference, find_pipeline(None, bundle.manifest.contract.pixels), [Example(source=tmp_path / "turned.jpg")])
    parts = by_name(found)
    assert parts["decode"] > 100 * parts["resize"] and found


def test_each_contribution_is_the_distance_between_two_answers(bundle: Bundle, reference: TorchReference) -> None:
    """By hand: normalization with another mean, in PyTorch."""
    files = [Example(source=each) for each in made_up_files(bundle.manifest.contract)[:2]]
    steps = [v2.Resize((16, 16)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.25] * 3, HALF)]
    found = stage_budget(bundle, reference, Pipeline(name="mine", function=v2.Compose(steps)), files)
    answers = []
    for mean in (0.25, 0.5):
        tensors = [(v2.Resize((16, 16))(Image.open(io.BytesIO(each.source))), mean) for each in files]  # type: ignore[arg-type]
        with torch.no_grad():
            rows = [reference.network(((torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255) - shift) / 0.5) for image, shift in tensors]
        answers.append(torch.cat(rows).numpy().astype(np.float64))
    stage = next(each for each in found.stages if each.name == "normalize")
    assert stage.largest == pytest.approx(np.abs(answers[0] - answers[1]).max() / np.ptp(answers[0]), rel=1e-3)
    assert stage.rms == pytest.approx(np.sqrt(np.square(answers[0] - answers[1]).mean()) / answers[0].std(), rel=1e-3)
    assert stage.changed == int((answers[0].argmax(1) != answers[1].argmax(1)).sum())


def test_made_up_files_are_jpegs_larger_than_the_network(bundle: Bundle) -> None:
    sizes = [Image.open(io.BytesIO(each)).size for each in made_up_files(bundle.manifest.contract)]
    assert len(set(sizes)) > 3 and all(min(size) > 16 for size in sizes) and any(w > h for w, h in sizes) and any(w < h for w, h in sizes)
