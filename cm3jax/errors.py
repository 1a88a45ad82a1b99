"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    Every launch command turns it into that sentence on standard error and exit code 2, without a
    traceback. Raise it for what a user can mend (a path, a value, a checkpoint of another
    vocabulary); let programming errors be ordinary exceptions.
    """
