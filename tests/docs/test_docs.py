"""The examples in the docstrings run as they stand."""

import doctest
import importlib
import pkgutil

import pytest

import lwrn_fast

# Compiled modules, and one that runs the command.
NOT_READ = ("lwrn_fast._C", "lwrn_fast._ops", "lwrn_fast._ops_cuda", "lwrn_fast.__main__")
MODULES = ["lwrn_fast"] + [
    module.name for module in pkgutil.walk_packages(lwrn_fast.__path__, "lwrn_fast.") if module.name not in NOT_READ
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    # lwrn_fast.crp and its like are functions too, but the import by name gives the module
    assert module.__name__ == name
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("name", [name for name in lwrn_fast.__all__ if name != "__version__"])
def test_public_names_have_an_example(name):
    documented = getattr(lwrn_fast, name)
    if not isinstance(documented, type(doctest)):
        assert ">>>" in (documented.__doc__ or "")


def test_modules_are_found_by_the_names_that_they_had():
    for name, moved in lwrn_fast._MOVED.items():
        with pytest.warns(DeprecationWarning, match=f"lwrn_fast.{name} is lwrn_fast.{moved} now"):
            assert getattr(lwrn_fast, name) is importlib.import_module(f"lwrn_fast.{moved}")
    with pytest.raises(AttributeError, match="has no attribute 'no_module'"):
        _ = lwrn_fast.no_module
