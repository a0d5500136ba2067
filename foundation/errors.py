"""The root of all errors that are written for users."""


class LifecycleError(Exception):
    """A problem that the user can fix. Its message says what is wrong, where, and what to do.

    Commands print it without a traceback, and assets show it as a failure without a retry. Any other exception is a defect and keeps
    its traceback.
    """
