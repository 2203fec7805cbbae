"""The kernels without torch: the self-check, built for this machine and for aarch64."""

import shutil

import pytest

from support.compiling import TESTS, build, missing, run

CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("g++")), reason=f"{missing('g++')}")
def test_every_instruction_set_of_this_machine(tmp_path, everything):
    folder, cases = tmp_path / "build", 300 if everything else 60
    compiled = TESTS.parent / "build" / "native"
    if compiled.exists():  # objects of the package: ninja compiles again those that differ
        shutil.copytree(compiled, folder, symlinks=True)
    assert f"portable: {cases} problems of each op, 0 wrong" in run(build(folder, "selfcheck", ""), cases)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing(CROSS_COMPILER, EMULATOR)), reason=f"{missing(CROSS_COMPILER, EMULATOR)}")
def test_on_aarch64(tmp_path, everything):
    program, cases = build(tmp_path, "selfcheck", "-O1 -static", cxx=CROSS_COMPILER), 60 if everything else 15
    assert run(EMULATOR, program, cases) == f"portable: {cases} problems of each op, 0 wrong\n"
