"""A fake camera and a virtual screen, for machines that have neither."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.compiling import TESTS, run


def camera(folder: Path, frames: int) -> dict[str, str]:
    """Return environment variables that give a program a camera at /dev/video0 with so many frames. Needs g++."""
    library = folder / "camera.so"
    source = TESTS / "support" / "camera.cpp"
    run("g++", "-std=c++20", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source)
    return {"LD_PRELOAD": str(library), "CAMERA_FRAMES": str(frames)}


@contextmanager
def screen() -> Iterator[dict[str, str]]:
    """Return environment variables that give a program a screen, while the context lasts. Needs Xvfb."""
    with subprocess.Popen(["Xvfb", "-displayfd", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            yield {"DISPLAY": f":{int(server.stdout.readline())}"}
        finally:
            server.terminate()
