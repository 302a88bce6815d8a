"""The exceptions that are shown to a user as a line instead of a traceback."""


class UserError(ValueError):
    """A mistake the user can mend: the message is one line, what is wrong and what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # Names of files may have several lines.


class Preempted(Exception):
    """A job was asked to stop and has kept what it made; the message says how to go on."""
