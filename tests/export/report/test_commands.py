"""Commands that a page shows: what was asked for is in them, and a shell reads them as they are meant."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from edgeport_export.report.commands import commands
from edgeport_export.report.facts import BundleFacts
from edgeport_runtime import Bundle
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.manifest import sealed

CLASSIFIER = Path(__file__).parents[2] / "fixtures" / "format2" / "classifier"


def of_model(tmp_path: Path, model: str | None, name: str = "bundle") -> BundleFacts:
    folder = Path(shutil.copytree(CLASSIFIER, tmp_path / name))
    data = json.loads((folder / MANIFEST).read_text())
    data["provenance"] |= {} if model is None else {"model": model}
    (folder / MANIFEST).write_text(json.dumps(sealed(data)))
    return BundleFacts(Bundle(folder))


@pytest.mark.parametrize(
    ("model", "verify", "export"),
    [
        (None, "edgeport verify bundle --model MY.PACKAGE:FACTORY --checkpoint CHECKPOINT --calibration IMAGES --stages --json > found.json", None),
        (
            "my.nets:net",
            "edgeport verify bundle --model my.nets:net --checkpoint CHECKPOINT --calibration IMAGES --stages --json > found.json",
            "edgeport export my.nets:net --checkpoint CHECKPOINT --out again --plan bundle",
        ),
        (
            "cnn",
            "edgeport verify bundle --checkpoint CHECKPOINT --stages --json > found.json",
            "edgeport export cnn --checkpoint CHECKPOINT --out again --plan bundle",
        ),
    ],
)
def test_they_name_the_network_as_it_was_named(model: str | None, verify: str, export: str | None, tmp_path: Path) -> None:
    facts = of_model(tmp_path, model)
    assert facts.plan is not None and (facts.plan.recovery is not None) == (" --calibration" in commands(facts, held_out=False)[2] or model == "cnn")
    expected = verify if facts.plan.recovery is not None else verify.replace(" --calibration IMAGES", "")
    found = commands(facts, held_out=False)
    assert found[0] == f"edgeport-run check bundle --manifest-sha256 {facts.bundle.sha256}" and found[2] == expected
    assert found[3] == "edgeport report bundle" and found[4:] == ([] if export is None else [export])


def test_what_the_page_was_given_is_in_them() -> None:
    bundle = Bundle(CLASSIFIER)
    facts = BundleFacts(bundle, found={"manifest_sha256": bundle.sha256, "passed": True})
    assert commands(facts, held_out=True)[3] == "edgeport report classifier --verification found.json --held-out IMAGES"


def test_a_shell_reads_names_as_names(tmp_path: Path) -> None:
    facts = of_model(tmp_path, "a;b:c d", "sp ace;rm -r x")
    for command in commands(facts, held_out=False):
        words = shlex.split(command.partition(" > ")[0])
        assert "sp ace;rm -r x" in words and ";" not in "".join(word for word in words if word not in ("sp ace;rm -r x", "a;b:c d"))
