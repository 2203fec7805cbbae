"""Compile the Triton kernels with every row of kernels/configs.json, without a GPU, and report their resources:
`python bench/gpu/aot.py [--arch 80 90] [--op crp] [--amd] [--json FILE]`. Needs torch of any build, and Triton.

Each row is compiled for the largest problem of profiling/shapes.py that selects it, or the one that the targets are
stated for.
The exit status is 1 where a rule is broken, each told in a line: no spills; shared memory within what the architecture
has; tensor cores, where float32 need not be exact; maxima of two values at once that keep NaN, in CRP of 16-bit types;
loads of 16 bytes.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # read when Triton is imported

import problems
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

import gpu
from lwrn_fast.kernels import configs, crp_backward, fusion_backward
from lwrn_fast.kernels.launch import Launch
from lwrn_fast.profiling.cases import CrpCase, dtype_name
from lwrn_fast.profiling.text import left_aligned

# Shared memory that a program may have, in KB.
SHARED_KB = {"80": 163, "86": 99, "90": 227, "100": 227}
# Target of the AMD build, and its rows: those for the smallest shared memory, of which gfx942 has less still.
AMD, AMD_ROWS, AMD_SHARED_KB = "gfx942", "86", 64
DTYPES = {"half": (torch.bfloat16, torch.float16), "tf32": (torch.float32,), "ieee": (torch.float32,)}
SIGNATURE = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SIGNATURE |= {torch.int32: "*i32", torch.uint8: "*u8"}
# The kernels that a row of backward passes is for, and the op whose problems they are compiled for.
BACKWARD = {
    "crp_backward": ("crp", ("crp_backward_kernel",)),
    "fusion_backward": ("fusion", ("activation_backward_kernel", "upsample_backward_kernel")),
    "products": ("crp", ("input_gradient_kernel", "weight_gradient_kernel", "reduce_partials_kernel")),
}
COMPILER_OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Job:
    """A row of the table, with a problem that selects it."""

    op: str
    key: str  # the table's device key
    kind: str
    row: dict[str, int]
    dtype: torch.dtype
    case: problems.Case
    batch: int = 1
    depthwise: bool = False
    amd: bool = False
    kernel: str = ""  # of several

    def __str__(self) -> str:
        arch = AMD if self.amd else f"sm_{self.key}"
        row = f"{self.kind} row {self.row['pixels']} {dtype_name(self.dtype)}"
        op = self.op + (self.kernel and " " + self.kernel)
        return f"{op}{' depthwise' * self.depthwise} {arch} {row}"

    @property
    def multiplies(self) -> bool:
        if self.kernel:
            return self.kernel in ("input_gradient_kernel", "weight_gradient_kernel")
        return self.op != "upsample_argmax" and not self.depthwise


@dataclass
class Result:
    """Resources of a compiled kernel. Counts are of instructions in the program's text, however often they run."""

    registers: int = 0
    stack: int = 0  # bytes per thread
    spills: int = 0  # loads from and stores to the stack
    shared: int = 0  # bytes
    tensor_core: dict[str, int] = field(default_factory=dict)  # in PTX
    packed_max: dict[str, int] = field(default_factory=dict)  # in PTX and SASS
    wide_loads: int = 0  # of 16 bytes or more
    error: str = ""


def jobs(table: dict[str, Any], keys: list[str], ops: list[str], brief: bool, amd: bool = False) -> Iterator[Job]:
    """Yield the jobs of these rows.

    brief: float16 only for the first row of the first key, since it compiles as bfloat16 does.
    """
    for key in keys:
        for op in ops:
            forward_op, kernels = BACKWARD.get(op, (op, ("",)))
            for kind, rows in table[key].get(op, {}).items():
                for i, row in enumerate(rows):
                    case, batch = problem(forward_op, row["pixels"], rows[i - 1]["pixels"] if i else None)
                    for kernel, (n, dtype) in itertools.product(kernels, enumerate(DTYPES[kind])):
                        if n == 0 or not brief or (i == 0 and key == keys[0]):
                            yield Job(op, key, kind, row, dtype, case, batch, amd=amd, kernel=kernel)
                        if op in ("crp", "crp_backward") and kind == "half" and n == i == 0:
                            yield Job(op, key, kind, row, dtype, case, batch, True, amd, kernel)


def problem(op: str, min_pixels: int, below: int | None) -> tuple[problems.Case, int]:
    """Return a case, and how many images of it, with at least so many pixels and fewer than `below`."""
    target, size = problems.TARGETS[op], problems.pixels
    fitting = [c for c in problems.CASES[op] if min_pixels <= size(c) and (below is None or size(c) < below)]
    if fitting:
        return max(fitting, key=lambda case: (case == target, case.operations)), 1
    return target, max(1, -(-min_pixels // size(target)))


def prepare(job: Job) -> Launch:
    """Return the launch of the job's problem, as the op prepares it, on tensors without data."""
    tensors = problems.random(job.case, job.dtype, "meta", job.batch, job.depthwise)
    config = configs.CONFIG_CLASSES[job.op](**job.row)
    if job.kernel:
        return prepare_backward(job, config, *tensors)
    return gpu.Job(job.op, job.kind, job.case, config, job.batch, job.depthwise).launch(given=tensors)


def prepare_backward(job: Job, config: Any, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> Launch:
    """Return the launch of the job's kernel with the largest number of arguments in use."""
    given = {"products_config" if job.op == "products" else "config": config}
    biases = [w.new_empty(w.shape[0]) for w in weights]
    needs = [True] * (len(inputs) + 2 * len(weights))
    if isinstance(job.case, CrpCase):
        x, groups = inputs[0], job.case.channels if job.depthwise else 1
        stages = [x] * (len(weights) - 1)
        prepared = crp_backward.prepare(x, x, stages, weights, biases, groups, needs, **given)
    else:
        out = inputs[0].new_empty(job.batch, job.case.out_channels, *inputs[0].shape[2:])
        prepared = fusion_backward.prepare(out, out, inputs, weights, biases, job.case.activation, True, needs, **given)
    launches = [launch for launch in prepared.launches if launch.kernel.__name__ == job.kernel]
    launch = max(launches, key=lambda launch: sum(value is not None for value in launch.arguments.values()))
    if "PRECISION" in launch.arguments:
        launch.arguments["PRECISION"] = "tf32" if job.kind == "tf32" else "ieee"
    return launch


def compile_launch(launch: Launch, target: GPUTarget) -> CompiledKernel:
    """Compile as Triton does when a kernel is launched.

    Whole numbers that are 1 become constants, and numbers and addresses that are multiples of 16 are marked as such.
    """
    signature, constants, attributes = {}, {}, {}
    for i, (name, parameter) in enumerate(zip(launch.kernel.arg_names, launch.kernel.params, strict=True)):
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = SIGNATURE[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or value == 1:
            signature[name] = "constexpr"
            constants[name] = value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32" if value < 2**31 else "i64"
            if value % 16 == 0 and not isinstance(value, float):
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {name: launch.arguments[name] for name in COMPILER_OPTIONS}
    return triton.compile(source, target=target, options={**options, "enable_fp_fusion": True})


def run(job: Job) -> Result:
    target = GPUTarget("hip", AMD, 64) if job.amd else GPUTarget("cuda", int(job.key), 32)
    try:
        kernel = compile_launch(prepare(job), target)
    except Exception as error:  # whatever the compiler raises
        return Result(error=f"{type(error).__name__}: {error}".rstrip().splitlines()[-1])
    if job.amd:
        return measure_amd(kernel)
    # LLVM writes the maxima of sm_80 one by one, which ptxas pairs.
    return measure(kernel, disassemble=job.op == "crp" and job.kind == "half")


def measure(kernel: CompiledKernel, disassemble: bool) -> Result:
    """Read the resources from PTX and the binary.

    It takes half a second to disassemble the binary: that is done only if asked for, or if there are spills.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = re.search(r"REG:(\d+) STACK:(\d+)", cuobjdump("-res-usage", file.name))
        assert usage, "cuobjdump tells no registers"
        registers, stack = int(usage[1]), int(usage[2])
        sass = cuobjdump("-sass", file.name) if disassemble or stack else ""
    ptx = kernel.asm["ptx"]
    return Result(
        registers=registers,
        stack=stack,
        spills=count(r"\b(?:LDL|STL)\b", sass),
        shared=kernel.metadata.shared,
        tensor_core=counts(ptx, mma=r"\bmma\.sync", wgmma=r"\bwgmma\.mma_async", tcgen05=r"\btcgen05\.mma\b"),
        packed_max={
            **counts(ptx, ptx=r"\bmax\.NaN\.(?:bf|f)16x2"),
            **counts(sass, sass=r"\bV?HMNMX2?\S*\.NAN\b"),
        },
        wide_loads=count(r"\bld\.global\S*\.(?:v4\.b32|v2\.b64|v8\.b32|v4\.b64)|\bcp\.async\.\S+ .*, 0x10,", ptx),
    )


def cuobjdump(*arguments: str) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True).stdout


def measure_amd(kernel: CompiledKernel) -> Result:
    """Read the resources from the assembly, which ends with them."""
    text = kernel.asm["amdgcn"]

    def told(name: str) -> int:
        match = re.search(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
        return int(match[1]) if match else 0

    return Result(
        registers=told("vgpr_count"),
        stack=told("private_segment_fixed_size"),
        spills=told("vgpr_spill_count"),
        shared=kernel.metadata.shared,
        tensor_core=counts(text, mfma=r"\bv_mfma_"),
        packed_max=counts(text, pk=r"\bv_pk_maximum?"),
        wide_loads=count(r"\b(?:global|buffer)_load_dwordx4", text),
    )


def count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def counts(text: str, **patterns: str) -> dict[str, int]:
    """Return how often each pattern occurs, of those that do."""
    return {name: n for name, pattern in patterns.items() if (n := count(pattern, text))}


def violations(job: Job, result: Result) -> Iterator[str]:
    if result.error:
        yield f"does not compile: {result.error}"
        return
    if result.spills or result.stack:
        yield f"spills: {result.spills} loads and stores, {result.stack} bytes of stack"
    if result.shared > 1024 * limit(job):
        yield f"{result.shared / 1024:.0f} KB of shared memory, over the limit of {limit(job)} KB"
    if job.multiplies and job.kind != "ieee" and not result.tensor_core:
        yield "no tensor-core instruction"
    if job.amd:  # its instructions have other names
        return
    if job.op == "crp" and job.kind == "half" and not result.packed_max:
        yield "no packed maximum that keeps NaN"
    if job.op != "upsample_argmax" and not result.wide_loads:  # 21 classes have no 16 bytes that are aligned
        yield "no load of 16 bytes"


def limit(job: Job) -> int:
    return AMD_SHARED_KB if job.amd else SHARED_KB[job.key]


HEAD = (
    *("op", "arch", "kind", "row", "type", "problem", "registers", "stack", "LDL+STL"),
    *("shared KB", "limit", "tensor cores", "packed max", "16-byte loads"),
)


def cells(job: Job, result: Result) -> tuple[str, ...]:
    def told(numbers: dict[str, int]) -> str:
        return " ".join(f"{name} {n}" for name, n in numbers.items()) or "-"

    return (
        job.op + (job.kernel and " " + job.kernel) + " depthwise" * job.depthwise,
        AMD if job.amd else job.key,
        job.kind,
        str(job.row["pixels"]),
        dtype_name(job.dtype),
        f"{job.batch} x {job.case}" if job.batch > 1 else str(job.case),
        *(str(n) for n in (result.registers, result.stack, result.spills)),
        f"{result.shared / 1024:.1f}",
        str(limit(job)),
        told(result.tensor_core),
        told(result.packed_max),
        str(result.wide_loads),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=SHARED_KB, default=list(SHARED_KB), help="compute capability x 10")
    parser.add_argument("--op", nargs="+", choices=configs.CONFIG_CLASSES, default=list(configs.CONFIG_CLASSES))
    parser.add_argument("--table", type=Path, default=configs.TABLE, help="another table than the package's")
    parser.add_argument("--brief", action="store_true", help="float16 only for the first row of the first")
    parser.add_argument("--amd", action="store_true", help=f"instead, compile the rows of {AMD_ROWS} for {AMD}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    arguments = parser.parse_args()
    table = json.loads(arguments.table.read_text())
    keys = [AMD_ROWS] if arguments.amd else arguments.arch
    missing = [f"{key} {op}" for key in keys for op in arguments.op if op not in table.get(key, {})]
    if missing:
        print(f"{arguments.table} has no rows for {', '.join(missing)}", file=sys.stderr)
        return 2
    todo = list(jobs(table, keys, arguments.op, arguments.brief, arguments.amd))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # so that all of it is compiled now
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            results = list(pool.map(run, todo))
    print(f"Triton {triton.__version__}, torch {torch.__version__}")
    print(left_aligned([HEAD, *map(cells, todo, results)]))
    broken = [f"{job}: {text}" for job, result in zip(todo, results, strict=True) for text in violations(job, result)]
    print(*broken, sep="\n", end="\n" if broken else "")
    print(f"{len(todo)} kernels, {len(broken)} rules broken")
    if arguments.json:
        entries = [described(job) | asdict(result) for job, result in zip(todo, results, strict=True)]
        report = {"triton": triton.__version__, "torch": torch.__version__, "broken": broken, "results": entries}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(broken))


def described(job: Job) -> dict[str, Any]:
    return {**vars(job), "dtype": dtype_name(job.dtype), "case": str(job.case), "limit_kb": limit(job)}


if __name__ == "__main__":
    sys.exit(main())
