import pytest
from onnxruntime.quantization import QuantType

from edgeport_export import ExportError
from edgeport_export.quantization import targets
from edgeport_export.quantization.targets import TARGETS, find_target


@pytest.mark.parametrize(("exact", "name", "asks"), [(True, "x86-vnni", False), (False, "x86", True)])
def test_a_host_whose_products_saturate_is_no_vnni_host(exact: bool, name: str, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "int8_products_are_exact", lambda: exact)
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    assert find_target(None).name == name
    assert find_target("x86-vnni").session.exact_int8 == asks  # the numbers that the variant will have on the target
    assert not find_target("x86").session.exact_int8 and not find_target("arm64").session.exact_int8


@pytest.mark.parametrize(("machine", "name"), [("aarch64", "arm64"), ("arm64", "arm64"), ("AMD64", "x86-vnni")])
def test_the_machine_names_its_kind(machine: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "int8_products_are_exact", lambda: True)
    monkeypatch.setattr(targets.platform, "machine", lambda: machine)
    assert find_target(None).name == name and find_target(None).is_here
    assert [each.name for each in TARGETS.values() if each.is_here] == ([name] if name == "arm64" else ["x86-vnni", "x86"])


@pytest.mark.parametrize(
    ("name", "formats", "activations"),
    [
        ("x86-vnni", "U8 activations, S8 weights per channel", QuantType.QUInt8),
        ("x86", "U8 activations, 7-bit S8 weights per channel", QuantType.QUInt8),
        ("arm64", "S8 activations, S8 weights per channel", QuantType.QInt8),
    ],
)
def test_each_target_has_its_formats(name: str, formats: str, activations: QuantType) -> None:
    assert (find_target(name).formats, find_target(name).activations) == (formats, activations)


def test_an_unknown_target_is_refused_with_the_names() -> None:
    with pytest.raises(ExportError, match="among x86-vnni, x86, arm64, got 'riscv'"):
        find_target("riscv")
