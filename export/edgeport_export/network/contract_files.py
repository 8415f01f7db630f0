"""Contracts and labels that the user wrote to files."""

import json
from pathlib import Path

from edgeport_runtime import Contract, ContractError
from edgeport_runtime.errors import first_line
from edgeport_runtime.regular_files import read_text


def read_contract(path: Path) -> Contract:
    """A contract that the user wrote as JSON, in the form of the manifest's, or a whole manifest. Raises ContractError."""
    try:
        found = json.loads(read_text(path))
    except OSError as error:
        raise ContractError(f"{path}: the contract cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise ContractError(f"{path}: the contract is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ContractError(f"{path}: expected a contract as an object of JSON, got {type(found).__name__}")
    if isinstance(found.get("contract"), dict):
        found = found["contract"]
    try:
        return Contract.from_dict(found)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; blank lines are dropped. Raises ContractError."""
    try:
        labels = tuple(line.strip() for line in read_text(path).removeprefix("\ufeff").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: expected a file with one label a line, but it cannot be read ({first_line(error)})") from error
    if not labels:
        raise ContractError(f"{path}: expected one label a line, but the file is empty")
    return labels
