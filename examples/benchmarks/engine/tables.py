"""What is printed."""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table whose columns are as wide as their widest cell."""
    lines = [columns, *rows]
    widths = [max(len(str(line[k])) for line in lines) for k in range(len(columns))]
    print(title)
    for line in lines:
        cells = [str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)]
        print(f"    {'  '.join(cells)}".rstrip())
    print(flush=True)


def machine(num_threads: int) -> str:
    """Processor, threads and versions."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    has_bfloat16 = "yes" if multiplies_bfloat16() else "no"
    return (
        f"{processor()}{gpu}, {num_threads} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, bfloat16 products: {has_bfloat16}"
    )


def processor() -> str:
    """The processor's name, from Linux where it is Linux."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if "model name" in line:
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices; without, ``autocast`` is slower."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
