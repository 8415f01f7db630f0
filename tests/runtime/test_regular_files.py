"""What a path may lead to instead of a file. Each of these once was an image or a bundle that nobody got an answer about."""

import os
import socket
import threading
from pathlib import Path

import pytest

from edgeport_runtime.regular_files import NotRegularError, TooLargeError, open_regular, read_regular, read_text, what_is


def pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(os.name == "nt", reason="these kinds are Unix's")
@pytest.mark.parametrize(("make", "kind"), [(pipe, "a pipe"), (a_socket, "a socket"), (device, "a device"), (Path.mkdir, "a folder")])
def test_only_regular_files_are_opened_and_none_is_waited_for(make, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    make(Path("x"))
    with pytest.raises(NotRegularError) as caught:
        open_regular("x")
    assert caught.value.kind == kind and caught.value.strerror == f"it is {kind}, not a file"


@pytest.mark.skipif(os.name == "nt", reason="pipes are Unix's")
def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and its opening."""
    (tmp_path / "x").touch()
    os.mkfifo(tmp_path / "pipe")
    real = os.stat
    seen = real(tmp_path / "x")
    monkeypatch.setattr(os, "stat", lambda path, **options: seen if str(path).endswith("pipe") else real(path, **options))
    found: list[BaseException] = []

    def opened() -> None:
        try:
            open_regular(tmp_path / "pipe")
        except NotRegularError as error:
            found.append(error)

    thread = threading.Thread(target=opened, daemon=True)
    thread.start()
    thread.join(10)
    assert len(found) == 1


def test_links_are_followed_if_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    assert read_regular(tmp_path / "link", 3) == b"abc"
    with pytest.raises(NotRegularError, match="a symbolic link, not a file"):
        read_regular(tmp_path / "link", 3, links=False)


def test_at_most_so_many_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcd")
    assert read_regular(path, 4) == b"abcd"
    with pytest.raises(TooLargeError, match="it has 4 bytes, and at most 3 are read"):
        read_regular(path, 3)
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no space, and no memory
    with pytest.raises(TooLargeError, match=r"1,099,511,627,776 bytes, and at most 1,000 are read"):
        read_regular(path, 1000)
    path.write_bytes(b"abcd")
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((0o100644, *[0] * 9)))  # it grew after its size was asked for
    with pytest.raises(TooLargeError):
        read_regular(path, 3)


@pytest.mark.skipif(os.name == "nt", reason="these kinds are Unix's")
def test_what_is_there_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    found = [what_is(each) for each in (tmp_path, tmp_path / "file", tmp_path / "pipe", "/dev/null", tmp_path / "nothing", "x" * 5000, "a\0b")]
    assert found == ["a folder", "a file", "a pipe", "a device", None, None, None]


def test_text_is_utf8_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("ä", encoding="utf-8")
    assert read_text(tmp_path / "x") == "ä"
    monkeypatch.setattr("edgeport_runtime.regular_files.MOST_TEXT_BYTES", 1)
    with pytest.raises(TooLargeError):
        read_text(tmp_path / "x")
