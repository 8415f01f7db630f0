"""The temporary files of an export, and of one that was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgeport_export.scratch import PREFIX, lasting_folder, remove_left, scratch

HOLD = "import tempfile\nfrom edgeport_export.scratch import scratch\nwith scratch(): print(tempfile.mkdtemp(prefix='pre.quant.'), flush=True); input()"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_temporary_files_lie_in_one_folder_that_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch():
        folder = Path(tempfile.gettempdir())
        made = Path(tempfile.mkdtemp())
        assert folder.parent == tmp_path and folder.name.startswith(PREFIX) and made.parent == folder and lasting_folder() == str(tmp_path)
        with scratch():  # another thread's export
            assert tempfile.gettempdir() == str(folder)
        assert made.exists()
    assert list(tmp_path.iterdir()) == [] and tempfile.gettempdir() == lasting_folder() == str(tmp_path)


def test_the_next_export_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with scratch():
            assert left.exists()  # it is at work
        other.kill()
        other.wait()
        assert left.exists() and left.parent.name.startswith(PREFIX)
        with scratch():
            assert not left.parent.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    remove_left(tmp_path)
    assert (tmp_path / "mine").exists()
