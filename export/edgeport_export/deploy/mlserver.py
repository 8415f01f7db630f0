"""A folder for MLServer, which speaks the Open Inference Protocol: settings, a small runtime, and the bundle as it is.

    FOLDER/settings.json              the server's
    FOLDER/requirements.txt           beside the runtime's own
    FOLDER/NAME/model-settings.json   the model's
    FOLDER/NAME/runtime.py            arrays in, arrays out; gathers requests into batches
    FOLDER/NAME/bundle/               the bundle, whose golden cases run before the server is ready

Clients should use gRPC: MLServer refuses the protocol's binary tensors over HTTP (SeldonIO/MLServer#324).
"""

import json
import shutil
from pathlib import Path

from edgeport_runtime import Bundle, __version__

from .deployment import chosen_variant, deployment, gathered_batch, served_name
from .script_files import ASSETS

VERSION = "1.7.1"
PORTS = {"http_port": 8080, "grpc_port": 8081, "metrics_port": 8082}


def deploy_mlserver(bundle: Bundle, out: Path, *, name: str | None = None, precision: str | None = None, force: bool = False) -> Path:
    """Write a folder that `mlserver start` takes. `name`: of the model, the bundle's if left out. `precision`: what "auto" takes if left out.

    Raises InputError, OutputError.
    """
    name, batch = served_name(bundle, name), gathered_batch(bundle)
    taken = chosen_variant(bundle, precision, batch=batch or 1).precision
    server = {"parallel_workers": 0, "debug": False, **PORTS}  # in one process: onnxruntime has its own threads
    model = {
        "name": name,
        "implementation": "runtime.BundleModel",
        "parameters": {"version": __version__, "extra": {"precision": precision or "auto", "batch": batch}},
    }
    with deployment(out, "mlserver", bundle, taken, force=force) as folder:
        (folder / "settings.json").write_text(json.dumps(server, indent=1) + "\n", encoding="utf-8")
        (folder / "requirements.txt").write_text(f"mlserver=={VERSION}\n", encoding="utf-8")
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(ASSETS / "mlserver_runtime.py", folder / name / "runtime.py")
        shutil.copytree(bundle.folder, folder / name / "bundle")
    return out
