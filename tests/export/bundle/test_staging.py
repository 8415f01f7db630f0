from pathlib import Path

import pytest

from edgeport_export import OutputError
from edgeport_export.bundle import staging
from edgeport_export.bundle.staging import free_place, staged


def fill(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    (folder / "case").mkdir()
    (folder / "case" / "x.pb").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    with staged(out, force=False) as folder:
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
    with pytest.raises(error), staged(out, force=True) as folder:
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
    with staged(out, force=True) as folder:
        fill(folder, "new")
    assert contents(out) == {"manifest.json": "new", "case/x.pb": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_the_swap_is_really_one_step_here(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert staging._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()


def test_a_swap_that_was_cut_in_two_is_repaired(tmp_path: Path) -> None:
    old = tmp_path / ".bundle.old"
    old.mkdir()
    fill(old, "old")
    assert free_place(tmp_path / "bundle", force=True) == tmp_path / "bundle"
    assert contents(tmp_path / "bundle")["manifest.json"] == "old" and not old.exists()


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
    with pytest.raises(OutputError, match="cannot be written to"), staged(tmp_path / "file" / "bundle", force=False):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is Linux's")
def test_a_place_that_root_may_write_to_and_cannot_is_known_beforehand() -> None:
    with pytest.raises(OutputError, match="/proc cannot be written to; give another folder"):
        free_place(Path("/proc/none/bundle"), force=False)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"), staged(tmp_path / "bundle", force=False) as folder:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
