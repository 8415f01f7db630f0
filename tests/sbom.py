"""`make sbom`: both wheels, and for each a bill of materials: what it needs, with the versions that are installed here (CycloneDX 1.6, by cyclonedx-py).

python tests/sbom.py dist [runtime host]
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgeport_runtime import __version__

ROOT = Path(__file__).parents[1]
PROJECTS = {"runtime": ROOT / "runtime", "host": ROOT}
SELF = "root-component"


def built(project: Path, out: Path) -> Path:
    """The wheel; the same bytes each time."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(project)], check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        return Path(shutil.move(wheel, out / wheel.name))


def installed(project: Path) -> dict[str, Any]:
    """Everything in this environment, with the project as its root."""
    command = ["environment", sys.executable, "--pyproject", str(project / "pyproject.toml"), "--mc-type", "library", "--output-reproducible", "--of", "JSON"]
    done = subprocess.run([sys.executable, "-m", "cyclonedx_py", *command], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def needed(name: str, extras: frozenset[str]) -> set[str]:
    """A distribution and all that it needs here, directly or not. This environment holds more: tools of the tests, and what extras of others would add."""
    found, todo = set[str](), [(name, extras)]
    while todo:
        name, extras = todo.pop()
        if canonicalize_name(name) in found:
            continue
        found.add(canonicalize_name(name))
        for each in map(Requirement, requires(name) or []):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((each.name, frozenset(each.extras)))
    return found


def bill_of(project: Path, wheel: Path) -> dict[str, Any]:
    """For one wheel, whose hash is in it."""
    bill = installed(project)
    own = bill["metadata"]["component"]
    names = needed(own["name"], frozenset({"cpu"})) - {own["name"]}
    bill["components"] = [each for each in bill["components"] if canonicalize_name(each["name"]) in names]
    kept = {SELF, *(each["bom-ref"] for each in bill["components"])}
    edges = [each for each in bill["dependencies"] if each["ref"] in kept]
    bill["dependencies"] = [{"ref": each["ref"], "dependsOn": sorted(kept & set(each.get("dependsOn", [])))} for each in edges]
    own["version"] = __version__
    own["purl"] = f"pkg:pypi/{own['name']}@{__version__}"
    own["hashes"] = [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    return bill


def main(arguments: list[str]) -> None:
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for name in arguments[1:] or list(PROJECTS):
        wheel = built(PROJECTS[name], out)
        path = wheel.with_suffix(".cdx.json")
        path.write_text(json.dumps(bill_of(PROJECTS[name], wheel), indent=1, sort_keys=True) + "\n")
        print(f"{path}: {len(json.loads(path.read_text())['components'])} components")


if __name__ == "__main__":
    main(sys.argv[1:])
