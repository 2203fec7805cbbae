"""Print the requirements of the package with an extra, one a line: `python build_tools/extras.py lint`.

pip installs an extra with its package alone; make installs the tools of an extra without building the package.
"""

import re
import sys
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]


def requirements(extra: str) -> list[str]:
    """Return what `extra` asks for; extras of this package in it, as in "lwrn-fast[cli]", are replaced by theirs."""
    listed: list[str] = []
    for requirement in PROJECT["optional-dependencies"][extra]:
        own = re.fullmatch(re.escape(PROJECT["name"]) + r"\[(.+)\]", requirement)
        listed += [line for name in own[1].split(",") for line in requirements(name.strip())] if own else [requirement]
    return list(dict.fromkeys(listed))


if __name__ == "__main__":
    print(*PROJECT["dependencies"], *requirements(sys.argv[1]), sep="\n")
