"""The logger `lwrn_fast`, and messages that are logged once per process."""

import logging

log = logging.getLogger("lwrn_fast")
_said: set[str] = set()


def warn_once(message: str) -> bool:
    """Log a warning unless the same was logged before; return whether it is new."""
    new = message not in _said
    if new:
        _said.add(message)
        log.warning("%s", message)
    return new


# torch.compile cannot trace logging. This is torch.compiler.assume_constant_result without its import of the compiler:
# that import would double the time that `import lwrn_fast` takes.
warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]
