"""The command `lwrn-fast`: build the parser from the list of commands, and run one of them.

Exit codes: 0 for success, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM.
"""

from collections.abc import Sequence

from .. import heap
from .._version import __version__
from . import bench, eval, export, generate, info, profile, receptive_field, segment, train, video
from .terminal import Parser, exit_code

MODULES = (info, segment, generate, train, eval, export, profile, bench, video, receptive_field)
# In the order of the help text.
COMMANDS = [module.COMMAND for module in MODULES]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, sys.argv's by default; return the exit code.

    >>> main(["segment", "photo.jpg", "--num-classes", "999", "--out", "."])
    2
    """
    arguments = _parser().parse_args(argv)
    heap.keep()
    return exit_code(lambda: arguments.run(arguments), arguments.memory_hint)


def _parser() -> Parser:
    parser = Parser(prog="lwrn-fast", description="Light-Weight RefineNet segmentation, fast.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lwrn-fast {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        description = command.description
        parsers = [commands.add_parser(command.name, help=command.help, description=description, allow_abbrev=False)]
        if command.alias is not None:  # without `help`, argparse leaves it out of the list
            parsers.append(commands.add_parser(command.alias, description=description, allow_abbrev=False))
        for each in parsers:
            command.add_options(each)
            each.set_defaults(run=command.run, memory_hint=command.memory_hint)
    return parser
