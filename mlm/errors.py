"""The one exception that is meant for people."""


class UserError(Exception):
    """A mistake of the caller's: says in one line what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
