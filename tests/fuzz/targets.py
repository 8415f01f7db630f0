"""What strangers may hand over, and what must come of it: an answer, or one of the documented errors. Everything else that is raised is a finding.

python tests/fuzz/targets.py images FILE...      runs these inputs
python tests/fuzz/targets.py images CORPUS.zip   or all of an archive
"""

import json
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from shutil import copytree
from typing import Any

from edgeport_runtime import BundleError, ContractError, EdgeportError, ImageError, Pixels, load
from edgeport_runtime.bundle import MANIFEST, Bundle
from edgeport_runtime.decoding import size_px
from edgeport_runtime.image_limits import ImageLimits
from edgeport_runtime.images import prepare
from edgeport_runtime.loading import _contract, _outline
from edgeport_runtime.manifest import sealed

STORED = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"
LIMITS = ImageLimits(max_file_mb=1, max_px=4_000_000, max_frames=50)
RULES = (Pixels(height=32, width=32), Pixels(height=32, width=32, resize="letterbox", mode="L"), Pixels(height=32, width=32, resize="keep"))
WORKER_BYTES, WORKER_S = 4 * 2**30, 30.0  # of the process in which onnxruntime reads what our checks let pass


def images(data: bytes) -> None:
    """An upright image of the size that was promised, or ImageError."""
    for rule in RULES:
        with suppress(ImageError):
            made = prepare(data, rule, limits=LIMITS)
            assert made.shape[2] == rule.channels and (rule.resize == "keep" or made.shape[:2] == (32, 32)), made.shape
            assert rule.resize != "keep" or made.shape[:2] == size_px(data, LIMITS), (made.shape, size_px(data, LIMITS))


@cache
def _folder() -> Path:
    """A bundle of this process."""
    return copytree(STORED, Path(tempfile.mkdtemp(prefix="edgeport-fuzz-")) / "bundle")


def manifest(data: bytes) -> None:
    """A bundle whose manifest is this, sealed anew if it is one."""
    with suppress(ValueError, RecursionError):
        read = json.loads(data.decode("utf-8"))
        if isinstance(read, dict):
            data = json.dumps(sealed(read)).encode()
    (_folder() / MANIFEST).write_bytes(data)
    with suppress(BundleError):
        bundle = Bundle(_folder())
        assert repr(bundle) and bundle.was_replaced() is False
    with suppress(EdgeportError):
        assert load(_folder(), precision="fp32", threads=1).check() is not None


def golden(data: bytes) -> None:
    """A bundle one of whose golden files is this, its hash made good."""
    stored = json.loads((STORED / MANIFEST).read_text())
    case = stored["golden"][0]
    for kind in ("inputs", "outputs"):
        file = case[kind][0]
        (_folder() / file["file"]).write_bytes(data)
        file["sha256"] = sha256(data).hexdigest()
        (_folder() / MANIFEST).write_text(json.dumps(sealed(stored)))
        with suppress(EdgeportError):
            assert load(_folder(), precision="fp32", threads=1).check() is not None
        file["sha256"] = sha256((STORED / file["file"]).read_bytes()).hexdigest()
        (_folder() / file["file"]).write_bytes((STORED / file["file"]).read_bytes())


def model(data: bytes) -> None:
    """A lone .onnx. Our checks run here, and onnxruntime in a process of its own: it may die, and then this is told in NATIVE, not raised."""
    with suppress(BundleError, ContractError):
        _contract(_outline(data, Path("lone.onnx"), own_session=False), Path("lone.onnx"))
        answer = _worker().asked(data)
        if answer is not None:
            NATIVE.append((answer, data))


TARGETS: dict[str, Callable[[bytes], None]] = {"images": images, "manifest": manifest, "golden": golden, "model": model}
NATIVE: list[tuple[str, bytes]] = []


class _Worker:
    """A process that loads lone files until one of them kills it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def asked(self, data: bytes) -> str | None:
        """None if the file was loaded or refused; else how the process ended."""
        if self._process is None:
            self._process = subprocess.Popen([sys.executable, __file__, "--load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(struct.pack("<I", len(data)) + data)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line in (b"loaded\n", b"refused\n"):
            return None
        code = self._process.wait()
        self._process = None
        return f"{line.decode(errors='replace').strip()} exit status {code}"


@cache
def _worker() -> _Worker:
    return _Worker()


def _load_for_ever() -> None:
    """The worker's side."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = Path(tempfile.mkdtemp(prefix="edgeport-fuzz-")) / "lone.onnx"
    while header := sys.stdin.buffer.read(4):
        path.write_bytes(sys.stdin.buffer.read(struct.unpack("<I", header)[0]))
        signal.setitimer(signal.ITIMER_REAL, WORKER_S)  # its default action ends the process
        try:
            load(path, threads=1).close()
            print("loaded", flush=True)
        except EdgeportError:
            print("refused", flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


def inputs(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Files, and all files of archives."""
    for path in paths:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path.name}/{name}", archive.read(name)) for name in archive.namelist())
        else:
            yield path.name, path.read_bytes()


def main(arguments: list[str]) -> None:
    if arguments == ["--load"]:
        _load_for_ever()
        return
    warnings.simplefilter("ignore")  # of Pillow, about damaged files
    target: Any = TARGETS[arguments[0]]
    count = 0
    for name, data in inputs([Path(each) for each in arguments[1:]]):
        try:
            target(data)
        except BaseException:
            print(f"{arguments[0]}: {name}", file=sys.stderr, flush=True)
            raise
        count += 1
    print(f"{count} inputs, onnxruntime died {len(NATIVE)} times: {[how for how, _ in NATIVE]}" if NATIVE else f"{count} inputs", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
