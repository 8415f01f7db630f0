"""`edgeport report`: a page, and a model card, from what bundles hold."""

from collections.abc import Sequence
from pathlib import Path

from edgeport_export.errors import OutputError
from edgeport_export.report.page import model_card, report_page, write_text
from edgeport_runtime import Bundle, InputError


def free_file(path: Path, *, force: bool) -> Path:
    """Raises OutputError if it exists, and is not to be replaced."""
    if path.exists() and not force:
        raise OutputError(f"{path} exists already; give another file, or replace it (--force)")
    return path


def run_report(folders: Sequence[Path], out: Path, card: Path | None, *, images: bool, force: bool) -> list[Path]:
    """Write the page, and the card of one bundle. The files that were written. Raises InputError, OutputError, and what `Bundle` raises."""
    if card is not None and len(folders) > 1:
        raise InputError(f"a model card is of one bundle, got {len(folders)}: leave --card out, or name one bundle")
    places = [free_file(each, force=force) for each in (out, card) if each is not None]
    bundles = [Bundle(folder) for folder in folders]
    write_text(report_page(bundles, images=images), out)
    if card is not None:
        write_text(model_card(bundles[0]), card)
    return places
