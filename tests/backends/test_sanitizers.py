"""The C++ part built with sanitizers, under the op tests and the self-check of the kernels."""

import re
import shutil
import sys
from pathlib import Path

import pytest

import lwrn_fast
from lwrn_fast.backends import native
from support.compiling import build, run
from support.sanitizing import OPTIONS, library, without

ADDRESS = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
THREAD = "-O1 -g1 -fsanitize=thread"
# The op tests with the C++ part as backend that reach every op, dtype, tail, layout and registration. The self-check
# covers the sizes of maps.
CHOSEN = "cpu and (channels or classes or layouts or stages or numbers or threads or empty or nan or infinit)"
OP_TESTS = [f"ops/test_{op}.py" for op in ("crp", "fusion", "upsample_argmax")]


needs_asan = pytest.mark.skipif(bool(without("libasan.so")), reason=f"{without('libasan.so')}")
needs_tsan = pytest.mark.skipif(bool(without("libtsan.so")), reason=f"{without('libtsan.so')}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sanitized")


@pytest.fixture(scope="module")
def sets():
    """Return the instruction sets that this machine runs."""
    if native.missing() is not None:
        pytest.skip(native.missing())
    return native.extension().cpu_isas()


@pytest.fixture
def cases(everything):
    """Return the number of problems: every twentieth has maps too large for the workspace."""
    return 60 if everything else 20


@pytest.mark.slow
@needs_asan
def test_ops_with_addresses_and_undefined_behaviour(folder, sets, tmp_path):
    package = tmp_path / "lwrn_fast"
    shutil.copytree(Path(lwrn_fast.__file__).parent, package, ignore=shutil.ignore_patterns("_ops.so", "__pycache__"))
    shutil.copy(build(folder, "_ops.so", ADDRESS, *sets), package)
    # Load the sanitizers before all other libraries, and the C++ library before they look up its exceptions.
    preloaded = " ".join(map(library, ("libasan.so", "libubsan.so", "libstdc++.so")))
    script = f"""
import sys, pytest
from support import comparing
from lwrn_fast.backends import native
comparing.eager_error = lambda function, variants: 1.0  # slow to compute; other runs check the accuracy
assert str(native.OPS) == {str(package / "_ops.so")!r} and native.missing() is None, native.missing()
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--all", "-k", {CHOSEN!r}, *{OP_TESTS}]))
"""
    output = run(sys.executable, "-c", script, PYTHONPATH=str(tmp_path), LD_PRELOAD=preloaded, **OPTIONS)
    assert int(re.search(r"(\d+) passed", output)[1]) > 500


@pytest.mark.slow
@needs_asan
def test_kernels_with_addresses_and_undefined_behaviour(folder, sets, cases):
    output = run(build(folder, "selfcheck", ADDRESS, *sets), cases, **OPTIONS)
    assert output.count(f"{cases} problems of each op, 0 wrong") == len(sets)


@pytest.mark.slow
@needs_tsan
def test_kernels_with_threads(tmp_path, cases):
    output = run(build(tmp_path, "selfcheck", THREAD, "portable"), cases)
    assert f"portable: {cases} problems of each op, 0 wrong" in output
