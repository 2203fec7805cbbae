"""Resources of the compiled CUDA kernels, without a GPU: `python bench/gpu/cuda_resources.py [FILE...] [--write]`.

Reads _ops_cuda.so of the installed package, or the objects and libraries given, with cuobjdump, which is looked for on
PATH, in the CUDA toolkit and in Triton's package. The exit status is 1 where a rule is broken, each told in a line: no
spills and no stack; tensor cores (Hopper's in kernels for Hopper), but for exact float32, which must have none; maxima
that keep NaN in crp, of two values at once for 16-bit types; loads of 16 bytes; multiplications of Hopper that are not
done one by one and overlap with other work; no more registers and shared memory than in cuda_resources.json, which
--write brings up to date.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")
NAMESPACE = re.compile(r"lwrn_fast::|cuda::|\(anonymous namespace\)::")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)([^;]*)")
COUNTED = {
    "HMMA": r"HMMA\.",
    "HGMMA": r"HGMMA\.",
    "HGMMA groups": r"HGMMA\..* gsb0",
    "overlaps": r"WARPGROUP\.DEPBAR.* gsb0, 0x[1-9]",
    "FFMA": r"FFMA",
    "max2": r"V?HMNMX2?\b\S*\.NAN",
    "max": r"FMNMX3?\b\S*\.NAN",
    "global 16": r"LDG(?:STS)?\.\S*(?:128|256)",
    "shared 16": r"LDS\S*\.128|LDSM\S*\.4",
    "LDL+STL": r"(?:LDL|STL)\b",
}
PATTERNS = {name: re.compile(pattern) for name, pattern in COUNTED.items()}


@dataclass
class Kernel:
    """Resources of one kernel on one architecture. Counts are of instructions in its text, however often they run."""

    arch: str  # sm_90a
    name: str  # as in the source, without namespaces
    registers: int
    stack: int  # bytes per thread, of local memory too
    shared: int  # bytes, on top of those that a launch asks for
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def op(self) -> str:
        return next((op for op in ("crp", "fusion") if self.name.lower().startswith(op)), "")

    @property
    def kind(self) -> str:
        match = re.search(r"\b(?:Bf16|F16|Tf32|F32)\b", self.name)
        return match[0] if match else ""

    @property
    def for_hopper(self) -> bool:
        return "Sm90" in self.name or "WarpgroupProduct" in self.name

    @property
    def multiplies(self) -> bool:
        return bool(self.op) and "Depthwise" not in self.name


def cuobjdump() -> str | None:
    """Return the path of the program; None where it is not installed."""
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [os.environ.get("PATH", ""), f"{toolkit}/bin"]
    triton = find_spec("triton")
    if triton is not None and triton.origin:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


def default_file() -> Path:
    package = find_spec("lwrn_fast")
    return Path(package.origin).with_name("_ops_cuda.so") if package and package.origin else Path("_ops_cuda.so")


def dump(program: str, *arguments: object, folder: str | None = None) -> Iterator[str]:
    """Yield the lines that the program prints, as they come."""
    command = [program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {process.returncode}")


def architectures(program: str, file: Path) -> list[str]:
    listed = " ".join(dump(program, "--list-elf", file))
    return list(dict.fromkeys(re.findall(r"\.(sm_\w+)\.cubin", listed)))


def kernels(program: str, file: Path, arch: str) -> list[Kernel]:
    by_symbol: dict[str, Kernel] = {}
    usage = " ".join(dump(program, "--dump-resource-usage", "--gpu-architecture", arch, file))
    for symbol, resources in re.findall(r"Function (\S+):\s+(REG:.*?) CONSTANT", usage):
        use = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", resources)}
        by_symbol[symbol] = Kernel(arch, "", use["REG"], use["STACK"] + use["LOCAL"], use["SHARED"])
    kernel: Kernel | None = None
    for line in dump(program, "--dump-sass", "--gpu-architecture", arch, file):
        if match := INSTRUCTION.match(line):
            assert kernel is not None
            text = match[1] + match[2]
            kernel.counts.update(name for name, pattern in PATTERNS.items() if pattern.match(text))
        elif "Function : " in line:
            kernel = by_symbol[line.split()[-1]]
    for symbol, name in zip(by_symbol, demangled(by_symbol), strict=True):
        by_symbol[symbol].name = name
    return list(by_symbol.values())


def demangled(symbols: Iterable[str]) -> list[str]:
    """Return the names as in the source: `Name<...>` of `void kernel<Name<...>>(...)`."""
    filtered = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return [readable(line) for line in filtered.splitlines()]


def readable(name: str) -> str:
    name = NAMESPACE.sub("", name).replace("> >", ">>").replace("> >", ">>")
    match = re.match(r"void kernel<(.*)>\(.*\)$", name)
    return (match[1] if match else name).strip()


def compiler(program: str, file: Path) -> str:
    """Return the version of ptxas that made the file, as the file says."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in dump(program, "--extract-elf", "all", file.absolute(), folder=folder):
            pass
        for cubin in sorted(Path(folder).iterdir()):
            match = re.search(rb"Cuda compilation tools, release \S+ V([\d.]+)", cubin.read_bytes())
            if match:
                return match[1].decode()
    return "unknown"


def report(files: Iterable[Path]) -> tuple[str, list[Kernel]]:
    """Return the version of the compiler, and all kernels of all architectures, in order."""
    program = cuobjdump()
    if program is None:
        raise RuntimeError("cuobjdump is not installed")
    jobs = [(file, arch) for file in files for arch in architectures(program, file)]
    if not jobs:
        raise RuntimeError("no compiled kernels")
    with ThreadPoolExecutor() as pool:
        listed = pool.map(lambda job: kernels(program, *job), jobs)
    everything = [kernel for each in listed for kernel in each]
    return compiler(program, jobs[0][0]), sorted(everything, key=lambda kernel: (number(kernel.arch), kernel.name))


def number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def violations(kernel: Kernel, limits: dict[str, int] | None) -> Iterator[str]:
    """Yield the rules that a kernel breaks. limits: those of the table, None to ask for the rules alone."""
    counts = kernel.counts
    if kernel.stack or counts["LDL+STL"]:
        yield f"spills: {counts['LDL+STL']} loads and stores, {kernel.stack} bytes of stack"
    for name, limit in (limits or {}).items():
        if getattr(kernel, name) > limit:
            yield f"{getattr(kernel, name)} {name}, the table has {limit}"
    if kernel.multiplies:
        yield from missing_multiplications(kernel)
    if kernel.op == "crp":
        if kernel.kind in ("Bf16", "F16") and not counts["max2"]:
            yield "no maximum of two values that keeps NaN"
        if kernel.kind in ("F32", "Tf32") and not counts["max"]:
            yield "no maximum that keeps NaN"
    if kernel.op and not counts["global 16"]:
        yield "no load of 16 bytes from global memory"
    if kernel.multiplies and not counts["shared 16"] and not kernel.for_hopper:
        yield "no load of 16 bytes from shared memory"


def missing_multiplications(kernel: Kernel) -> Iterator[str]:
    counts = kernel.counts
    if kernel.kind == "F32":
        if not counts["FFMA"]:
            yield "no multiply-add of float32"
        if counts["HMMA"] or counts["HGMMA"]:
            yield "tensor cores in exact float32"
    elif kernel.for_hopper:
        if not counts["HGMMA"]:
            yield "no HGMMA"
        if 2 * counts["HGMMA groups"] > counts["HGMMA"]:
            yield f"HGMMA one by one: {counts['HGMMA groups']} groups of {counts['HGMMA']}"
        if not counts["overlaps"]:
            yield "all HGMMA are waited for"
    elif not counts["HMMA"]:
        yield "no HMMA"


def broken_rules(measured: list[Kernel], table: dict[str, Any], version: str, whole: bool = True) -> Iterator[str]:
    """Yield the broken rules of all kernels.

    Sizes are compared with the table's only where the same compiler made them. whole: all kernels must be there.
    """
    same = version == table.get("ptxas")
    for kernel in measured:
        limits = table.get(kernel.arch, {}).get(kernel.name)
        if limits is None:
            yield f"{kernel.arch} {kernel.name}: not in the table"
        for text in violations(kernel, limits if same else None):
            yield f"{kernel.arch} {kernel.name}: {text}"
    there = {(kernel.arch, kernel.name) for kernel in measured}
    for arch in dict.fromkeys(kernel.arch for kernel in measured):
        for name in table.get(arch, {}):
            if whole and (arch, name) not in there:
                yield f"{arch} {name}: in the table, not in what was compiled"


def lines(measured: list[Kernel]) -> str:
    rows = [["arch", "kernel", "registers", "stack", "shared", *COUNTED]]
    for k in measured:
        rows.append([k.arch, k.name, *map(str, (k.registers, k.stack, k.shared, *(k.counts[n] for n in COUNTED)))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def write(path: Path, measured: list[Kernel], version: str) -> None:
    """Write the table, one line for each kernel."""
    text = f'{{\n "ptxas": "{version}"'
    for arch in dict.fromkeys(kernel.arch for kernel in measured):
        own = [kernel for kernel in measured if kernel.arch == arch]
        rows = [f'  "{k.name}": {{"registers": {k.registers}, "shared": {k.shared}}}' for k in own]
        text += f',\n "{arch}": {{\n' + ",\n".join(rows) + "\n }"
    path.write_text(text + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="objects or libraries, else the package's")
    parser.add_argument("--table", type=Path, default=TABLE, help="another table than cuda_resources.json")
    parser.add_argument("--write", action="store_true", help="write the table: these are all the kernels there are")
    arguments = parser.parse_args()
    files = arguments.files or [default_file()]
    absent = [str(file) for file in files if not file.exists()]
    if absent or cuobjdump() is None:
        print(f"missing: {', '.join(absent) or 'cuobjdump'}", file=sys.stderr)
        return 2
    version, measured = report(files)
    if arguments.write:
        write(arguments.table, measured, version)
    table = json.loads(arguments.table.read_text(encoding="utf-8")) if arguments.table.exists() else {}
    print(f"ptxas {version}" + ("" if version == table.get("ptxas") else f", the table is of {table.get('ptxas')}"))
    print(lines(measured))
    broken = list(broken_rules(measured, table, version, whole=not arguments.files))
    print(*broken, sep="\n", end="\n" if broken else "")
    print(f"{len(measured)} kernels, {len(broken)} rules broken")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
