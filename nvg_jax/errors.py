"""The one exception that is shown to a user as a line instead of a traceback."""


class UserError(Exception):
    """A mistake the user can mend: the message is one line, what is wrong and what to do."""
