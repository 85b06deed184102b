"""Compile the Triton kernels ahead of time, on a machine without a GPU, for the devices we name.

    python export/compile_triton.py build/triton        # with fasdiff-edge[triton] installed

Writes one `<kernel>.sm_<xx>.cubin` each and prints what a thread and a block take, and the least
time that the memory of each device allows the split and the merge (bytes moved over its published
bandwidth; an estimate: nothing is run).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fasdiff_edge.kernels import frequency, range_decoder

WARP = 32


@dataclass(frozen=True)
class Device:
    """A device of a compute capability, and its published memory bandwidth in GB/s."""

    name: str
    capability: int
    bandwidth: float


DEVICES = (
    Device("Jetson AGX Xavier", 72, 137),
    Device("Jetson Orin Nano 8 GB", 87, 102),
    Device("Jetson AGX Orin", 87, 205),
    Device("L4", 89, 300),
    Device("RTX 4090", 89, 1008),
    Device("H100 SXM", 90, 3350),
    Device("Jetson AGX Thor", 110, 273),
)
SIZES = ((256, 256), (1080, 1920))
BYTES_PER_PIXEL = 3 + 48 * 4 / 16  # uint8 RGB on one side, float32 bands on the other

_FREQUENCY = {"height": "i32", "width": "i32", "rows": "i32", "columns": "i32"}
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, int]]] = {
    "split": (
        frequency.split_kernel,
        {"image": "*u8", "bands": "*fp32", **_FREQUENCY},
        {"BLOCK": frequency.BLOCK},
    ),
    "merge": (
        frequency.merge_kernel,
        {"bands": "*fp32", "image": "*u8", **_FREQUENCY},
        {"BLOCK": frequency.BLOCK},
    ),
    "range_decode": (
        range_decoder.decode_kernel,
        {
            "payloads": "*u8", "starts": "*i64", "sizes": "*i64", "state": "*i64",
            "status": "*i32", "cdf": "*i64", "table_starts": "*i32", "offsets": "*i32",
            "tables": "*i32", "values": "*i32", "count": "i32",
        },
        {},
    ),
}  # fmt: skip
NUM_WARPS = {"split": 4, "merge": 4, "range_decode": 1}


@dataclass(frozen=True)
class Compiled:
    """A kernel for a compute capability; registers of a thread, shared and local bytes."""

    kernel: str
    capability: int
    cubin: bytes
    registers: int
    shared: int
    spilled: int


def compile_kernel(name: str, capability: int) -> Compiled:
    """Compile a kernel of KERNELS.

    Raises:
      RuntimeError: the resource usage cannot be read from what was compiled.
    """
    function, arguments, constants = KERNELS[name]
    signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, WARP)
    options = {"num_warps": NUM_WARPS[name], "enable_fp_fusion": False}
    compiled = triton.compile(source, target=target, options=options)
    cubin: bytes = compiled.asm["cubin"]
    usage = resource_usage(cubin)
    return Compiled(name, capability, cubin, usage["REG"], compiled.metadata.shared, usage["LOCAL"])


def resource_usage(cubin: bytes) -> dict[str, int]:
    """What `cuobjdump`, which comes with Triton, says of the only kernel of a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        found = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    usage = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", found)}
    if "REG" not in usage:
        raise RuntimeError(f"cuobjdump told no registers: {found!r}")
    return usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"Triton {triton.__version__}\n")
    print("| kernel | target | cubin, bytes | registers | shared, bytes | spilled, bytes |")
    print("|---|---|---|---|---|---|")
    for capability in sorted({device.capability for device in DEVICES}):
        for name in KERNELS:
            one = compile_kernel(name, capability)
            (args.folder / f"{name}.sm_{capability}.cubin").write_bytes(one.cubin)
            print(
                f"| {name} | sm_{capability} | {len(one.cubin)} | {one.registers} | {one.shared} "
                f"| {one.spilled} |"
            )
    titles = [f"{width}x{height}" for height, width in SIZES]
    print(f"\n| device | target | GB/s | {' | '.join(f'{t}, us at least' for t in titles)} |")
    print("|---" * (3 + len(SIZES)) + "|")
    for device in DEVICES:
        times = [
            height * width * BYTES_PER_PIXEL / (device.bandwidth * 1e3) for height, width in SIZES
        ]
        cells = " | ".join(f"{time:.1f}" for time in times)
        print(f"| {device.name} | sm_{device.capability} | {device.bandwidth:g} | {cells} |")


if __name__ == "__main__":
    main()
