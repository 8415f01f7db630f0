"""Print the lowest versions that the dependency lists promise, as constraints for pip: `numpy>=1.26` becomes `numpy==1.26`."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def floors() -> Iterator[str]:
    for file in ("pyproject.toml", "runtime/pyproject.toml"):
        project = tomllib.loads((ROOT / file).read_text())["project"]
        for need in [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]:
            found = re.fullmatch(r"([\w-]+)>=([\w.]+)", need)
            if found is not None:  # not edgeport-runtime itself, and not onnxruntime-gpu with its extras
                yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    print("\n".join(sorted(set(floors()))))
