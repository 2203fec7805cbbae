"""Fixtures of all tests: the backends under test, outputs poisoned with NaN, and a fixed seed."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

# Waiting threads leave the cores to other work on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

import lwrn_fast
from lwrn_fast.backends import cuda as _cuda
from lwrn_fast.backends import native as _native
from lwrn_fast.backends import triton
from lwrn_fast.profiling import machine
from support import choosing, emulated

GPU = torch.cuda.is_available()
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are first used


def pytest_sessionstart() -> None:
    """Switch off the overflow checks of Triton's interpreter, which double its time."""
    if not GPU and triton.missing() is None:
        from triton.runtime.interpreter import interpreter_builder as builder

        if hasattr(builder.options, "sanitize_overflow"):
            builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


@dataclass(frozen=True)
class Backend:
    """A way to run an op: a new backend joins all tests of ops with one entry in `backends`."""

    id: str
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"


TRITON = Backend("triton", "triton", device="cuda" if GPU else "cpu")


def backends() -> list[Backend]:
    extension = _native.extension()
    isas = extension.cpu_isas() if extension is not None else ["missing"]
    return [
        Backend("reference", "reference"),
        *(Backend(f"cpu-{isa}", "cpu", {"LWRN_FAST_CPU_ISA": isa}) for isa in isas),
        TRITON,
        Backend("cuda", "cuda", device=TRITON.device),
    ]


def runs(backend: Backend, op: str) -> bool:
    """Return whether the backend can run the op of this name: the reference runs all, others those in OPS."""
    return backend.name == "reference" or backend.name in lwrn_fast.ops.OPS[op].kernels


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernels_only: leaves the reference out of the backends under test")
    config.addinivalue_line("markers", "op(name): leaves out the backends that have no kernel of this op")
    config.addinivalue_line("markers", "not_interpreted: skips Triton where only its interpreter could run it")
    config.addinivalue_line("markers", "slow: `make test` leaves it out, `make test-all` does not")
    config.addinivalue_line("markers", "in_turn(parameter): the interpreter gets one of its values per case, in turn")


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("lwrn_fast").addoption
    add("--all", action="store_true", help="also what `make test` leaves out: slow tests, all combinations")
    add("--left-out", action="store_true", help="nothing but what `make test` leaves out")
    add("--everything", action="store_true", help="--all, and the cases that others make unlikely to fail")


# The files that take longest, in descending order. They are started first, so that no process ends up alone with one.
LONG = (
    *("test_sanitizers", "test_entrances", "test_crp", "test_emulator", "test_triton_compile", "test_documents"),
    *("test_build", "test_export_meaning", "test_optimize", "test_accelerate", "test_patterns", "test_rewrites"),
    *("test_video", "test_training", "test_triton_backward", "test_cli", "test_models", "test_folders", "test_survey"),
    *("test_checkpoint_layouts", "test_tracers", "test_capture", "test_triton", "test_conv_parameters"),
    *("test_conv_parameters_in_models", "test_decoding", "test_compiler", "test_export", "test_native"),
    *("test_upsample_argmax", "test_gradients", "test_fusion", "test_export_failures"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    everything, left_out = config.getoption("everything"), config.getoption("left_out")
    out = set() if GPU or everything else choosing.left_to_others(items, TRITON)
    named = any("::" in argument for argument in config.args)  # a case named on the command line always runs
    if left_out or not (GPU or everything or named or config.getoption("all")):
        more = choosing.left_out_of_make_test([item for item in items if item not in out])
        out |= {item for item in items if item not in more} if left_out else more
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cuda = _cuda.missing() if GPU else _native.missing() or emulated.why_not()
    reasons = {"cpu": _native.missing(), "triton": triton.missing(), "cuda": cuda}
    marks = {name: [pytest.mark.skip(reason=reason)] if reason else [] for name, reason in reasons.items()}
    if not GPU and metafunc.definition.get_closest_marker("not_interpreted"):
        marks["triton"].append(pytest.mark.skip(reason="needs a GPU: too much for Triton's interpreter"))
    if "backend" in metafunc.fixturenames:
        op = metafunc.definition.get_closest_marker("op")
        tested = backends() if op is None else [b for b in backends() if runs(b, *op.args)]
        if metafunc.definition.get_closest_marker("kernels_only"):
            tested = [b for b in tested if b.name != "reference"]
        parameters = [pytest.param(b, id=b.id, marks=marks.get(b.name, [])) for b in tested]
        metafunc.parametrize("backend", parameters, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Run the test once per backend and, on the CPU, once per instruction set this machine can run.

    The mark kernels_only leaves out the reference, and op(name) the backends without a kernel of that op.
    """
    for name, value in request.param.environment.items():
        monkeypatch.setenv(name, value)
    surroundings: AbstractContextManager[None] = nullcontext()
    if request.param.device == "cuda":
        surroundings = machine.float32_precision("ieee")  # PyTorch's default may be TF32
    elif request.param.name == "cuda":
        surroundings = emulated.in_place_of_a_gpu(monkeypatch)
    with surroundings, lwrn_fast.use_backend(request.param.name), torch.device(request.param.device):
        yield request.param


@pytest.fixture
def everything(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("everything")


@pytest.fixture
def native() -> None:
    """Skip the test where the C++ part is absent."""
    if _native.missing() is not None:
        pytest.skip(_native.missing())


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill memory of torch.empty with NaN, or all ones in integers, so that unwritten memory is no result."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads after a test that sets it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
