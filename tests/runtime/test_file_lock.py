"""Locks against another process, a killed one and an owner that is just leaving."""

import subprocess
import sys
from pathlib import Path

from edgeport_runtime import file_lock
from edgeport_runtime.file_lock import locked

HOLD = """import sys
from pathlib import Path
from edgeport_runtime.file_lock import locked
with locked(Path(sys.argv[1])) as free:
    print(free, flush=True)
    input()
"""


def test_one_has_it_and_its_file_is_gone_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as first:
        with locked(tmp_path / "lock") as second:
            assert first and not second
        assert (tmp_path / "lock").exists()  # whoever did not get it removes nothing
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_none(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"True\n"
        with locked(tmp_path / "lock") as free:
            assert not free
        other.kill()
        other.wait()
        assert (tmp_path / "lock").exists()
        with locked(tmp_path / "lock") as free:
            assert free


def test_a_lock_whose_file_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The owner leaves between our opening the file and our locking it: then its file is nobody's, and another one is made."""
    path, real, made = tmp_path / "lock", file_lock._lock, list[int]()

    def lock(descriptor: int) -> bool:
        made.append(descriptor)
        if len(made) == 1:
            path.unlink()
        return real(descriptor)

    monkeypatch.setattr(file_lock, "_lock", lock)
    with locked(path) as free:
        assert free and len(made) == 2 and path.exists()
