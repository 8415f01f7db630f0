from pathlib import Path

import pytest

from edgeport_export import OutputError
from edgeport_export.bundle import staging
from edgeport_export.bundle.staging import free_place, reserved, staged


def fill(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    (folder / "case").mkdir()
    (folder / "case" / "x.pb").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    with reserved(out, force=False) as place, staged(place) as folder:
        fill(folder, "new")
        assert not out.exists()
    assert contents(out) == {"manifest.json": "new", "case/x.pb": "new"}
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [False, True])
def test_or_not_at_all(tmp_path: Path, error: type[BaseException], existing: bool) -> None:
    out = tmp_path / "bundle"
    if existing:
        out.mkdir()
        fill(out, "old")
    with pytest.raises(error), reserved(out, force=True) as place, staged(place) as folder:
        fill(folder, "new")
        raise error
    assert (contents(out) == {"manifest.json": "old", "case/x.pb": "old"}) if existing else not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == (["bundle"] if existing else [])


@pytest.mark.parametrize("atomic", [True, False])
def test_force_swaps_the_old_bundle_for_the_new(tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not atomic:
        monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    out = tmp_path / "bundle"
    out.mkdir()
    fill(out, "old")
    with reserved(out, force=True) as place, staged(place) as folder:
        fill(folder, "new")
    assert contents(out) == {"manifest.json": "new", "case/x.pb": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_the_swap_is_really_one_step_here(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert staging._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()


def test_what_a_killed_export_left_is_removed_or_put_back(tmp_path: Path) -> None:
    for role in ("old", "staging"):
        (tmp_path / f".bundle.{role}").mkdir()
        fill(tmp_path / f".bundle.{role}", role)
    (tmp_path / ".bundle.lock").touch()
    with pytest.raises(OutputError, match="exists already"), reserved(tmp_path / "bundle", force=False):
        pass
    assert contents(tmp_path / "bundle")["manifest.json"] == "old" and [path.name for path in tmp_path.iterdir()] == ["bundle"]
    with reserved(tmp_path / "bundle", force=True) as place:
        assert place == tmp_path / "bundle"


def test_two_exports_to_one_place_do_not_meet(tmp_path: Path) -> None:
    with reserved(tmp_path / "new" / "bundle", force=False):
        with pytest.raises(OutputError, match="another export is writing there; wait until it ends"), reserved(tmp_path / "new" / "bundle", force=False):
            pass
        with reserved(tmp_path / "new" / "other", force=False):
            pass
    assert list(tmp_path.iterdir()) == []  # folders that were made for nothing are gone


def test_a_link_is_followed_to_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    fill(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    with reserved(tmp_path / "current", force=True) as place, staged(place) as folder:
        fill(folder, "new")
    assert (tmp_path / "current").is_symlink() and contents(tmp_path / "v1")["manifest.json"] == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1"]


def test_what_is_in_the_way_is_never_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        free_place(tmp_path / "file", force=True)
    (tmp_path / "bundle").mkdir()
    fill(tmp_path / "bundle", "old")
    with pytest.raises(OutputError, match="exists already; give another folder, or replace it"):
        free_place(tmp_path / "bundle", force=False)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(OutputError, match="is no bundle, so force does not replace it"):
        free_place(tmp_path / "thesis", force=True)
    free_place(tmp_path / "bundle", force=True)
    free_place(tmp_path / "nothing", force=False)


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written to"), reserved(tmp_path / "file" / "bundle", force=False):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is Linux's")
def test_a_place_that_root_may_write_to_and_cannot_is_known_beforehand() -> None:
    with pytest.raises(OutputError, match="/proc cannot be written to; give another folder"):
        free_place(Path("/proc/none/bundle"), force=False)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"), staged(tmp_path / "bundle") as folder:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_becomes_full_anywhere_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no bundle was written, because a disk is full"), reserved(tmp_path / "bundle", force=False):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), reserved(tmp_path / "bundle", force=False):  # nobody's but the caller's
        raise FileNotFoundError(2, "No such file")
    assert list(tmp_path.iterdir()) == []
