"""The runtime on an arm64 processor, emulated: `make aarch64` runs tests/runtime and the golden cases of the demo's networks, int8 in arm64's formats.

Debian's Python for arm64 is unpacked into a folder, the runtime's wheel and what it needs are put beside it, and qemu-user runs them; nothing of
this machine is changed but that qemu-user is installed. Tests that start another process are left out with that reason: the emulator
knows one program. Times under emulation tell nothing.

    python tests/bench/aarch64.py [--folder .aarch64] [--checkpoints demo/checkpoints]
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *(
        "python3.11-minimal",
        "libpython3.11-minimal",
        "libpython3.11-stdlib",
        "python3.11",
        "libc6",
        "libgcc-s1",
    ),
    *(
        "libstdc++6",
        "zlib1g",
        "libexpat1",
        "libssl3",
        "libffi8",
        "libbz2-1.0",
    ),
    *(
        "liblzma5",
        "libsqlite3-0",
        "libuuid1",
        "libcrypt1",
        "libtinfo6",
        "libncursesw6",
    ),
    *("libreadline8",),
)
WHEELS = ("onnx", "onnxruntime", "numpy", "pillow", "pytest", "hypothesis", "prometheus-client", "jsonschema")
PLATFORMS = [f"manylinux_{version}_aarch64" for version in ("2_28", "2_27", "2_26", "2_17")] + ["manylinux2014_aarch64"]
# onnxruntime reads which processor this is, and would read this machine's (qemu 7.2; microsoft/onnxruntime#23957 is what a wrong answer costs).
CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""
NETWORKS = ("cnn", "resnet18", "attention", "generator")


def run(command: Sequence[str | Path], **more: object) -> None:
    print("+", " ".join(map(str, command))[:200], flush=True)
    subprocess.run([str(each) for each in command], check=True, **more)  # type: ignore[call-overload]


def unpack_debian(folder: Path) -> None:
    """Debian's arm64 packages, from a package list of their own, below `folder/root`."""
    state, root = folder / "apt", folder / "root"
    for each in (state / "lists" / "partial", state / "archives" / "partial", root):
        each.mkdir(parents=True, exist_ok=True)
    options = [f"-o{name}={value}" for name, value in (("APT::Architecture", "arm64"), ("APT::Architectures", "arm64"), ("Dir::State::Lists", state / "lists"))]
    run(["apt-get", *options, "-qq", "update"])
    run(["apt-get", *options, "-qq", "download", *PACKAGES], cwd=state / "archives")
    for package in sorted((state / "archives").glob("*.deb")):
        run(["dpkg-deb", "-x", package, root])
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(CPUINFO)


def install_wheels(folder: Path) -> None:
    """The runtime's wheel and what it and its tests need, for arm64, below `folder/site`."""
    built = folder / "wheels"
    run([sys.executable, "-m", "build", "--wheel", "--outdir", built, ROOT / "runtime"])
    wanted = [f"--platform={each}" for each in PLATFORMS]
    kind = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--quiet", "--upgrade", f"--target={folder / 'site'}"]
    run([sys.executable, "-m", "pip", "install", *kind, *wanted, *WHEELS])
    run([sys.executable, "-m", "pip", "install", *kind, *wanted, "--no-deps", *sorted(built.glob("*.whl"))])


def export_for_arm(folder: Path, checkpoints: Path) -> None:
    for name in NETWORKS:
        if not (folder / "bundles" / name).exists():
            job = [name, "--checkpoint", checkpoints / f"{name}.safetensors", "--target", "arm64", "--precision", "fp32,int8"]
            run([sys.executable, "-m", "edgeport_export", "export", *job, "--out", folder / "bundles" / name])


def emulated(folder: Path, arguments: Sequence[str | Path]) -> int:
    """Arm64's Python with these arguments; its exit code."""
    root = folder / "root"
    places = {"PYTHONPATH": str(folder / "site"), "PYTHONHOME": str(root / "usr"), "HOME": str(folder)}
    environment = {**places, "PATH": os.environ["PATH"], "EDGEPORT_EMULATED": "1"}
    command = ["qemu-aarch64", "-L", root, root / "usr" / "bin" / "python3.11", *arguments]
    return subprocess.run([str(each) for each in command], env=environment, check=False, cwd=ROOT).returncode


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(".aarch64"))
    parser.add_argument("--checkpoints", type=Path, default=Path("demo/checkpoints"))
    given = parser.parse_args()
    folder = given.folder.absolute()
    if not given.checkpoints.is_dir():
        raise SystemExit(f"{given.checkpoints}: expected the checkpoints of `make demo`; run that first, or name them with --checkpoints")
    if shutil.which("qemu-aarch64") is None:
        run(["apt-get", "install", "-qq", "--yes", "qemu-user"])
    if not (folder / "root" / "proc" / "cpuinfo").exists():
        unpack_debian(folder)
    install_wheels(folder)
    export_for_arm(folder, given.checkpoints)
    failed = emulated(folder, ["-c", "import platform; assert platform.machine() == 'aarch64'"])
    for name in NETWORKS:
        failed |= emulated(folder, ["-m", "edgeport_runtime", "check", folder / "bundles" / name])
    return failed | emulated(folder, ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/runtime"])


if __name__ == "__main__":
    raise SystemExit(main())
