"""The error whose message is for the user of a command."""


class UserError(Exception):
    """Something the user can put right; the message says what, in one line."""
