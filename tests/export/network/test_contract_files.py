"""Contracts and labels from files: good ones, and what is none."""

import json
import os
from pathlib import Path

import pytest

from edgeport_export.network.contract_files import read_contract, read_labels
from edgeport_models import network
from edgeport_runtime import ContractError


def test_files_of_contracts_and_labels(tmp_path: Path) -> None:
    contract = network("cnn").contract(tuple("0123456789"), 32)
    (tmp_path / "c.json").write_text(contract.to_json())
    assert read_contract(tmp_path / "c.json") == contract
    (tmp_path / "c.json").write_text(json.dumps({"format": 1, "contract": contract.to_dict()}))
    assert read_contract(tmp_path / "c.json") == contract  # a whole manifest
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ContractError, match=r"c\.json: expected a contract as an object of JSON, got list"):
        read_contract(tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"task": 1}')
    with pytest.raises(ContractError, match=r"c\.json: this is not a contract"):
        read_contract(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ContractError, match="not JSON"):
        read_contract(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ContractError, match="not JSON"):
        read_contract(tmp_path / "c.json")
    (tmp_path / "l.txt").write_text("cat\n\n dog \n")
    assert read_labels(tmp_path / "l.txt") == ("cat", "dog")
    (tmp_path / "l.txt").write_text("cat\ndog\n", encoding="utf-8-sig")  # as some editors save it
    assert read_labels(tmp_path / "l.txt") == ("cat", "dog")
    (tmp_path / "l.txt").write_text("\n")
    with pytest.raises(ContractError, match="the file is empty"):
        read_labels(tmp_path / "l.txt")


@pytest.mark.skipif(os.name == "nt", reason="pipes are Unix's")
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device")):
        for read in (read_contract, read_labels):
            with pytest.raises(ContractError, match=f"cannot be read .it is {kind}, not a file"):
                read(path)
