"""What accelerators have, by the name that `Device.device_kind` contains. Makers' figures.

Memory is what a program may use, where that is known (TPUs: what their compiler allows); otherwise what is
sold. Interconnect is what leaves a chip a second in one direction: of a GPU through NVLink, or PCIe where
there is none; of a TPU along one axis of its torus, both ways round, which is what one axis of a mesh gets.

Sources: Google Cloud's pages of each TPU version and Austin et al. 2025, "How to Scale Your Model", part 2
(TPUs); NVIDIA's data sheets, bfloat16 without sparsity (float16 where a chip has no bfloat16).
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """One device."""

    name: str  # as `tools/plan.py --chip` and TPU topologies have it
    kind: str  # part of `Device.device_kind`
    memory_gib: float
    peak_flops: float  # a second, bfloat16 products
    bandwidth: float  # bytes a second, of its memory
    interconnect: float  # bytes a second, see above
    clock: float = 0.0  # cycles a second of a TPU's core, from its peak of products; 0: not known


CHIPS: tuple[Chip, ...] = (  # a kind that contains another stands before it
    Chip("h200", "H200", 139.8, 989e12, 4.8e12, 450e9),
    Chip("h100-pcie", "H100 PCIe", 79.2, 756e12, 2.0e12, 64e9),
    Chip("h100", "H100", 79.2, 989e12, 3.35e12, 450e9),
    Chip("b200", "B200", 178.0, 2250e12, 8.0e12, 900e9),
    Chip("a100-80gb", "A100-SXM4-80GB", 79.2, 312e12, 2.039e12, 300e9),
    Chip("a100", "A100", 39.4, 312e12, 1.555e12, 300e9),
    Chip("l40s", "L40S", 44.5, 362e12, 0.864e12, 32e9),
    Chip("l4", "L4", 22.2, 121e12, 0.3e12, 32e9),
    Chip("a10g", "A10G", 22.2, 70e12, 0.6e12, 32e9),
    Chip("rtx4090", "RTX 4090", 23.6, 165e12, 1.008e12, 32e9),
    Chip("t4", "T4", 14.6, 65e12, 0.32e12, 16e9),
    Chip("v100", "V100", 15.8, 125e12, 0.9e12, 150e9),
    Chip("v4", "TPU v4", 30.75, 275e12, 1.2e12, 90e9),
    Chip("v5e", "TPU v5 lite", 15.75, 197e12, 0.819e12, 90e9, 1.5e9),
    Chip("v5e", "TPU v5e", 15.75, 197e12, 0.819e12, 90e9, 1.5e9),
    Chip("v5p", "TPU v5p", 95.74, 459e12, 2.765e12, 180e9, 1.75e9),
    Chip("v5p", "TPU v5", 95.74, 459e12, 2.765e12, 180e9, 1.75e9),
    Chip("v6e", "TPU v6", 31.25, 918e12, 1.64e12, 180e9, 1.75e9),
    Chip("tpu7x", "TPU7x", 188.0, 2307e12, 7.38e12, 200e9),
)


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a device; None where the table does not know it."""
    return next((chip for chip in CHIPS if chip.kind in device_kind), None)


def named(name: str) -> Chip:
    """The chip of a name.

    Raises: ValueError with the known names.
    """
    found = next((chip for chip in CHIPS if chip.name == name), None)
    if found is None:
        raise ValueError(f"no chip is called {name!r}; known are {sorted({chip.name for chip in CHIPS})}.")
    return found
