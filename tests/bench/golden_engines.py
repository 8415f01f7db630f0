"""The golden cases of bundles on every engine that is here: `make engines`, or `python tests/bench/golden_engines.py BUNDLE…`.

    onnxruntime          the bundle's files, through the runtime's own check
    one size             onnxruntime, on copies at the cases' sizes (`edgeport deploy fixed`)
    .ort                 onnxruntime, on its own format
    openvino             the bundle's files; at one size, the copies
    node                 the folder of `edgeport deploy node`
    browser              the page of `edgeport deploy web`, in Chromium

An engine that is not here is told as such, with the part that is missing.
"""

import argparse
import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeport_export.deploy.fixed import fixed_model
from edgeport_export.deploy.golden_sets import GoldenSet, sizes_of, stored_sets
from edgeport_export.deploy.node import deploy_node
from edgeport_export.deploy.web import deploy_web
from edgeport_runtime import Bundle, EdgeportError, SessionOptions, load
from edgeport_runtime.device import open_session

PRECISIONS = ("fp32", "int8")
Run = Callable[[GoldenSet], Mapping[str, Any]]


class MissingError(Exception):
    """A part that an engine needs is not here."""


@dataclass(frozen=True)
class Row:
    """One variant on one engine. `share`: the largest difference, of the outputs' range. `why`: the first failure, or what is missing."""

    bundle: str
    precision: str
    engine: str
    passed: int
    total: int
    share: float | None
    why: str = ""


def rows_of(folder: Path) -> Iterator[Row]:
    bundle = Bundle(folder)
    held = [each.precision for each in bundle.manifest.variants if each.precision in PRECISIONS]
    for name, engine in ENGINES.items():
        for precision in held:
            try:
                yield engine(bundle, precision)
            except MissingError as missing:
                yield Row(bundle.manifest.name, precision, name, 0, 0, None, f"not run: {missing}")


def compared(bundle: Bundle, precision: str, engine: str, runs: Callable[[GoldenSet], Run]) -> Row:
    """`runs`: for each case what runs it; an engine that refuses a case fails it, with its first line."""
    passed, total, shares, why = 0, 0, [0.0], ""
    for each in stored_sets(bundle, precision):
        total += len(each.expected)
        try:
            outputs = runs(each)(each)
        except Exception as error:  # each engine has its own kinds
            why = why or f"{each.name}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            continue
        for result in each.compared(outputs):
            passed += bool(result)
            shares.append(result.max_abs / (float(np.ptp(each.expected[result.name.split("/", 1)[1]])) or 1.0))
            why = why or ("" if result else str(result))
    return Row(bundle.manifest.name, precision, engine, passed, total, max(shares), why)


def of_onnxruntime(bundle: Bundle, precision: str) -> Row:
    with load(bundle.folder, precision=precision) as model:
        report = model.check()
    failed = [str(each) for each in report.comparisons if not each]
    return Row(bundle.manifest.name, precision, "onnxruntime", len(report.comparisons) - len(failed), len(report.comparisons), None, "".join(failed[:1]))


def of_session(model: bytes) -> Run:
    session = open_session(model, SessionOptions())
    names = [each.name for each in session.get_outputs()]
    return lambda case: dict(zip(names, session.run(names, case.inputs), strict=True))


def one_size(bundle: Bundle, precision: str) -> Callable[[GoldenSet], bytes]:
    data = bundle.read(bundle.variant(precision))
    return lambda case: fixed_model(data, bundle.manifest.contract, sizes_of(bundle.manifest.contract, case.inputs))


def at_one_size(bundle: Bundle, precision: str) -> Row:
    copy = one_size(bundle, precision)
    return compared(bundle, precision, "onnxruntime, one size", lambda case: of_session(copy(case)))


def of_ort_format(bundle: Bundle, precision: str) -> Row:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = str(Path(folder) / "model.ort")
        settings.add_session_config_entry("session.save_model_format", "ORT")
        settings.graph_optimization_level, settings.log_severity_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC, 3
        onnxruntime.InferenceSession(bundle.read(bundle.variant(precision)), settings, providers=["CPUExecutionProvider"])
        session = onnxruntime.InferenceSession(settings.optimized_model_filepath, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return compared(bundle, precision, ".ort", lambda _: lambda case: dict(zip(names, session.run(names, case.inputs), strict=True)))


def openvino_run(model: bytes, names: list[str]) -> Run:
    try:
        import openvino
    except ImportError as error:
        raise MissingError(f"openvino ({error})") from error
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # or it takes bfloat16 where the CPU has it

    def run(case: GoldenSet) -> Mapping[str, Any]:
        found = compiled(case.inputs)
        return {name: np.asarray(found[name]) for name in names}

    return run


def of_openvino(bundle: Bundle, precision: str) -> Row:
    names, data = [each.name for each in bundle.manifest.contract.outputs], bundle.read(bundle.variant(precision))
    return compared(bundle, precision, "openvino", lambda _: openvino_run(data, names))


def of_openvino_at_one_size(bundle: Bundle, precision: str) -> Row:
    names, copy = [each.name for each in bundle.manifest.contract.outputs], one_size(bundle, precision)
    return compared(bundle, precision, "openvino, one size", lambda case: openvino_run(copy(case), names))


@functools.cache
def node_modules() -> Path:
    """The packages, installed once."""
    if shutil.which("npm") is None:
        raise MissingError("npm")
    place = Path(tempfile.mkdtemp(prefix="edgeport-node-"))
    bundle = Bundle(Path(__file__).parents[1] / "fixtures" / "format2" / "classifier")
    deploy_node(bundle, place / "first")
    done = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=place / "first", capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"the packages of npm ({' '.join(done.stderr.split())[:100]})")
    return place / "first" / "node_modules"


def of_node(bundle: Bundle, precision: str) -> Row:
    packages = node_modules()
    with tempfile.TemporaryDirectory() as folder:
        out = deploy_node(bundle, Path(folder) / "d", precision=precision)
        (out / "node_modules").symlink_to(packages)
        done = subprocess.run(["node", "main.mjs", "check"], cwd=out, capture_output=True, text=True, check=False)
    words = done.stdout.split()  # "fp32: 3 of 3 golden outputs agree"
    if len(words) < 4:
        return Row(bundle.manifest.name, precision, "node", 0, 1, None, done.stderr.strip())
    return Row(bundle.manifest.name, precision, "node", int(words[1]), int(words[3]), None, "".join(done.stdout.splitlines()[1:2]))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a static server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def of_browser(bundle: Bundle, precision: str) -> Row:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise MissingError("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingError(f"playwright ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            out = deploy_web(bundle, Path(folder) / "d", precision=precision)
        except EdgeportError as error:
            raise MissingError(str(error)) from error
        with served(out) as address, sync_playwright() as started:
            page = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
            page.goto(address)
            page.wait_for_selector("#check:not([disabled])", timeout=120_000)
            page.click("#check")
            page.wait_for_selector("#checked:text('agree')", timeout=600_000)
            lines = [
                {key: each.get_attribute(f"data-{key}") for key in ("passed", "share", "same")} | {"text": each.inner_text()}
                for each in page.query_selector_all("#cases tbody tr")
            ]
    failed = [each["text"] for each in lines if each["passed"] != "true" or each["same"] == "false"]
    shares = [float(each["share"]) for each in lines]
    return Row(bundle.manifest.name, precision, "browser", len(lines) - len(failed), len(lines), max(shares, default=None), " ".join(failed[:1]))


ENGINES = {
    "onnxruntime": of_onnxruntime,
    "onnxruntime, one size": at_one_size,
    ".ort": of_ort_format,
    "openvino": of_openvino,
    "openvino, one size": of_openvino_at_one_size,
    "node": of_node,
    "browser": of_browser,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--engine", choices=list(ENGINES), action="append", help="this one alone; may be given several times")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for name in [each for each in ENGINES if given.engine and each not in given.engine]:
        del ENGINES[name]
    rows = [row for folder in given.bundles for row in rows_of(folder)]
    if given.json:
        print(json.dumps([asdict(each) for each in rows]))
    else:
        print("| bundle | variant | engine | agree | largest, of the range | first failure |\n|---|---|---|---|---|---|")
        for each in rows:
            share = "" if each.share is None else f"{each.share:.1e}"
            print(f"| {each.bundle} | {each.precision} | {each.engine} | {f'{each.passed} of {each.total}' if each.total else ''} | {share} | {each.why} |")
    return 0 if all(each.passed == each.total for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
