"""The one exception that a user caused and can mend."""


class UserError(Exception):
    """Bad input, config, adapter, router or URL.

    The message is one line: what was wrong, where, and what to do. Jobs print it without a traceback and exit 2.
    """
