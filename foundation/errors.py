"""The root of every error that a user is meant to read."""


class LifecycleError(Exception):
    """Something the user can put right. Its text is one sentence: what is wrong, where, what to do.

    Commands print it without a traceback, assets show it as a failure without a retry. Any other exception is a defect and
    keeps its traceback.
    """
