"""Number formats for each kind of CPU that a bundle can be made for.

Measured on ResNet18 at 224, one thread, AVX512-VNNI: U8 activations with S8 weights 5.1 ms and 34.5 dB, the library's default S8S8 14.0 ms.
Without VNNI, x86 adds pairs of 8-bit products in 16 bits, which saturates unless the weights keep to 7 bits (microsoft/onnxruntime#14642).
ARM has signed dot products, so both sides are signed there.
"""

import platform
from dataclasses import dataclass

from onnxruntime.quantization import QuantType

from edgeport_export.errors import ExportError
from edgeport_runtime import SessionOptions
from edgeport_runtime.int8_probe import int8_products_are_exact
from edgeport_runtime.manifest import ARM, X86, TargetCpu


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of CPU. One of your own goes into `ExportOptions(target=...)`; the names of those that are known are in TARGETS.

    `activations`: QUInt8 or QInt8. `narrow_weights`: weights keep to 7 bits. `machines`: the names that `platform.machine()` gives there.
    """

    name: str
    activations: QuantType
    narrow_weights: bool
    machines: tuple[str, ...]

    @property
    def largest_weight(self) -> int:
        """The largest integer that a weight becomes, as onnxruntime's quantizer chooses steps for signed weights."""
        return 64 if self.narrow_weights else 127

    @property
    def formats(self) -> str:
        """The number formats in words."""
        kind = "U8" if self.activations == QuantType.QUInt8 else "S8"
        return f"{kind} activations, {'7-bit ' if self.narrow_weights else ''}S8 weights per channel"

    @property
    def cpu(self) -> TargetCpu:
        """What the manifest says of it."""
        return TargetCpu(name=self.name, machines=self.machines, narrow_weights=self.narrow_weights)

    @property
    def is_here(self) -> bool:
        """Whether this machine is of that kind, so that times measured here apply there."""
        return platform.machine() in self.machines

    @property
    def session(self) -> SessionOptions:
        """Options under which a variant for this target gives here the numbers that it will have there: exact products if this CPU's saturate."""
        return SessionOptions(exact_int8=self.is_here and not self.narrow_weights and not int8_products_are_exact())


TARGETS = {
    each.name: each
    for each in (
        Target(name="x86-vnni", activations=QuantType.QUInt8, narrow_weights=False, machines=X86),
        Target(name="x86", activations=QuantType.QUInt8, narrow_weights=True, machines=X86),
        Target(name="arm64", activations=QuantType.QInt8, narrow_weights=False, machines=ARM),
    )
}


def find_target(name: str | Target | None) -> Target:
    """Look a target up; None is the kind of this machine, which a tiny product tells. Raises ExportError listing the names."""
    if isinstance(name, Target):
        return name
    if name is None and platform.machine() in TARGETS["arm64"].machines:
        return TARGETS["arm64"]
    if name is None:
        return TARGETS["x86-vnni" if int8_products_are_exact() else "x86"]
    if name not in TARGETS:
        raise ExportError(f"expected a target among {', '.join(TARGETS)}, got {name!r}")
    return TARGETS[name]
