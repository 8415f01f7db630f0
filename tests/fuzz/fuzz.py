"""`make fuzz`: each target for a share of the time, with coverage of edgeport's and Pillow's Python code to guide it (atheris, libFuzzer).

    python tests/fuzz/fuzz.py --seconds 3600 [--target images ...] [--folder fuzz]

A finding is an input after which something else than a documented error is raised, or that takes 20 seconds or 1.5 GB. It ends up in FOLDER/TARGET/found,
and the exit code is 1. Inputs at which onnxruntime died, in its own process, are in FOLDER/TARGET/native.
"""

import argparse
import random
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
STORED = HERE.parent / "fixtures" / "fuzz"
LONGEST = {"images": 20_000, "manifest": 20_000, "golden": 4_000, "model": 60_000}  # bytes of an input
LIMITS = ("-timeout=20", "-rss_limit_mb=1500", "-print_final_stats=1", "-verbosity=0")
LEAST_S = 5  # left, below which nothing is begun again after a finding


def fuzz_one(target: str, folder: Path, seconds: int) -> None:
    """In a process of its own, because libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["edgeport_runtime", "PIL"]):
        import targets
    from mutators import mutated_json, mutated_model

    warnings.simplefilter("ignore")
    known = {"manifest": mutated_json, "model": mutated_model}.get(target)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if known is not None and draw.random() < 0.8:
            try:
                return known(data, draw)[:most]
            except Exception:  # it is none any more
                pass
        return bytes(atheris.Mutate(data, most))

    def run(data: bytes) -> None:
        targets.TARGETS[target](data)
        for how, killer in targets.NATIVE:
            print(f"onnxruntime died: {how}", flush=True)
            save(folder / "native", killer)
        targets.NATIVE.clear()

    flags = [f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}", f"-artifact_prefix={folder}/found/", *LIMITS]
    atheris.Setup([sys.argv[0], str(folder / "corpus"), *flags], run, **({} if known is None else {"custom_mutator": mutate}))
    atheris.Fuzz()


def save(folder: Path, data: bytes) -> None:
    """Under a name that equal inputs share."""
    from seeds import name_of

    folder.mkdir(parents=True, exist_ok=True)
    (folder / name_of(data)).write_bytes(data)


def prepared(target: str, folder: Path) -> Path:
    """The folder of a target, with seeds and what earlier runs found out."""
    from seeds import seeds
    from targets import inputs

    for name in ("corpus", "found", "native"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for data in (*seeds(target), *(data for _, data in inputs(sorted(STORED.glob(f"{target}*"))))):
        save(folder / "corpus", data)
    return folder


def fuzz(target: str, folder: Path, seconds: float) -> int:
    """Until time is up, also after a finding. How often the process died without leaving the input: then the log tells more."""
    until, died = time.monotonic() + seconds, 0
    while (left := int(until - time.monotonic())) > LEAST_S:
        command = [sys.executable, __file__, "--one", target, "--folder", str(folder), "--seconds", str(left)]
        with (folder / "log").open("a") as log:
            died += subprocess.run(command, stdout=log, stderr=log, check=False).returncode < 0
    return died


def kept(target: str, folder: Path, most: int) -> None:
    """The smallest of the inputs that reached something new, as an archive for the suite."""
    chosen = sorted((folder / "corpus").iterdir(), key=lambda path: (path.stat().st_size, path.name))[:most]
    STORED.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(STORED / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in chosen:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600, help="in all")
    parser.add_argument("--target", nargs="*", default=list(LONGEST), choices=list(LONGEST))
    parser.add_argument("--folder", type=Path, default=Path("fuzz"))
    parser.add_argument("--keep", type=int, metavar="INPUTS", help="write so many of each target's smallest inputs into the suite's archives")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        fuzz_one(arguments.one, arguments.folder, arguments.seconds)
        return 0
    findings = 0
    for target in arguments.target:
        folder = prepared(target, arguments.folder / target)
        died = fuzz(target, folder, arguments.seconds / len(arguments.target))
        found, native = (len(list((folder / name).iterdir())) for name in ("found", "native"))
        found += died
        print(f"{target}: {len(list((folder / 'corpus').iterdir()))} inputs kept, {found} findings, onnxruntime died {native} times", flush=True)
        findings += found
        if arguments.keep:
            kept(target, folder, arguments.keep)
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
