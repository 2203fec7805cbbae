"""The parser: the list of commands, and the options that they share."""

import argparse

import pytest

from lwrn_fast import cli
from lwrn_fast.cli import options


def parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def signature(action: argparse.Action) -> tuple[object, ...]:
    return action.option_strings, action.dest, action.nargs, action.default, action.type, action.help


def test_help_lists_every_command_once(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == [command.name for command in cli.COMMANDS]
    assert "erf" not in text.split()


def test_erf_is_receptive_field():
    known = parsers()
    assert set(known) == {command.name for command in cli.COMMANDS} | {"erf"}
    ours, theirs = ([signature(action) for action in known[name]._actions] for name in ("receptive-field", "erf"))
    assert ours == theirs
    names = [parser.parse_args(["--out", "x"]) for parser in (known["receptive-field"], known["erf"])]
    assert names[0] == names[1]


def test_shared_options_are_shared():
    """An option of a shared name has the shared type, number of values and metavar, in every command but for `profile`,
    whose --backend may be repeated; and each is used."""
    used = set()
    for name, parser in parsers().items():
        for action in parser._actions:
            for option in set(action.option_strings) & set(options.SHARED):
                used.add(option)
                shared = options.SHARED[option]
                for key in ("type", "nargs", "metavar", "dest"):
                    if key in shared:
                        assert getattr(action, key) == shared[key], (name, option, key)
                if "choices" in shared and (name, option) != ("profile", "--backend"):
                    assert action.choices is shared["choices"], (name, option)
    assert used == set(options.SHARED)


def test_abbreviations_are_errors(capsys):
    for name in parsers():
        with pytest.raises(SystemExit):
            cli.main([name, "--hel"])
        assert capsys.readouterr().out == ""


def test_fill_takes_the_fields_alone():
    arguments = argparse.Namespace(scales=[0.5, 2.0], flip=True, run=print)
    from lwrn_fast.training import evaluate

    assert options.fill(evaluate.Options, arguments) == evaluate.Options((0.5, 2.0), True)
    assert options.fill(evaluate.Options, arguments, flip=False) == evaluate.Options((0.5, 2.0), False)
