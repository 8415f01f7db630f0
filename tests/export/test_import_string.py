import math
from pathlib import Path

import pytest

from edgeport_export.import_string import imported


def test_an_attribute_may_have_dots() -> None:
    assert imported("math:pi") == math.pi and imported("pathlib:Path.cwd") == Path.cwd


def test_the_users_own_code_lies_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code_of_here.py").write_text("class Nets:\n    small = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [each for each in __import__("sys").path if each != str(tmp_path)])
    assert imported("code_of_here:Nets.small") == 3


@pytest.mark.parametrize(
    ("name", "error"),
    [("no_such_module:x", ImportError), ("math:no_such_name", AttributeError), ("math:pi.no_such_name", AttributeError), (":x", ValueError)],
)
def test_names_that_stand_for_nothing(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        imported(name)
