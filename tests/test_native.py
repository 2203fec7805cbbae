"""The kernels without torch: a program that tries them, built for this machine and for aarch64."""

import pytest

from compiling import build, missing, run

CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.mark.skipif(bool(missing("g++")), reason=f"{missing('g++')}")
def test_every_instruction_set_of_this_machine(tmp_path):
    output = run(build(tmp_path, "selfcheck", "-O1"), 120)
    assert "portable: 120 problems of each op, 0 wrong" in output


@pytest.mark.skipif(bool(missing(CROSS_COMPILER, EMULATOR)), reason=f"{missing(CROSS_COMPILER, EMULATOR)}")
def test_on_aarch64(tmp_path):
    program = build(tmp_path, "selfcheck", "-O1 -static", cxx=CROSS_COMPILER)
    assert run(EMULATOR, program, 60) == "portable: 60 problems of each op, 0 wrong\n"
