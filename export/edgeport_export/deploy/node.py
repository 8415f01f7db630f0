"""A folder for Node: onnxruntime-node replays the golden cases and answers images. Node 20 or later.

Both packages ship their CPU binaries inside, so nothing has to run while they are installed: onnxruntime-node's script would download CUDA's.
"""

import json
from pathlib import Path

from edgeport_runtime import Bundle

from .deployment import deployment
from .script_files import SHARED, script_precisions, write_script_files

PACKAGES = {"onnxruntime-node": "1.30.0", "sharp": "0.35.5"}  # sharp reads images; libvips' decoder of JPEG is Pillow's, libjpeg-turbo
NPM_SETTINGS = "ignore-scripts=true\npackage-lock=false\n"  # a lock file would name a registry


def deploy_node(bundle: Bundle, out: Path, *, precision: str | None = None, force: bool = False) -> Path:
    """Write a folder in which `npm install` and `node main.mjs check` work. `precision`: all that Node runs if left out. Raises InputError, OutputError."""
    precisions = script_precisions(bundle, precision)
    package = {
        "name": "edgeport-bundle",
        "version": "1.0.0",
        "private": True,
        "type": "module",
        "engines": {"node": ">=20"},
        "scripts": {"check": "node main.mjs check"},
        "dependencies": PACKAGES,
    }
    with deployment(out, "node", bundle, ",".join(precisions), force=force) as folder:
        (folder / "package.json").write_text(json.dumps(package, indent=2) + "\n", encoding="utf-8")
        (folder / ".npmrc").write_text(NPM_SETTINGS, encoding="utf-8")
        write_script_files(folder, bundle, precisions, (*SHARED, "main.mjs"))
    return out
