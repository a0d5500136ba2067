"""The one kind of error that a person running a replay meets: a sentence that says what, where and what to do.

Belongs here: the exception. Does not belong here: a refused gate, which is a result and no error.
"""


class ReplayError(Exception):
    """Something the user can put right. Its text is one sentence, shown without a traceback."""
