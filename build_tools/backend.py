"""PEP 517 backend: setuptools' own, which also requires torch where the target environment has none."""

from __future__ import annotations

from setuptools.build_meta import *  # noqa: F403  (every hook that is not defined below is setuptools' own)

from build_tools import native


def get_requires_for_build_wheel(config_settings=None):
    return native.requirements()


get_requires_for_build_editable = get_requires_for_build_wheel
