"""Errors that a user can cause. Each knows the exit code its command ends with."""

from __future__ import annotations


class VattError(Exception):
    """An error that a user can cause; its message says what is wrong and the way out."""

    exit_code = 1


class UsageError(VattError):
    """Wrong usage, settings or manifest: nothing was begun."""

    exit_code = 2


class ConfigError(UsageError, ValueError):
    """A setting that does not exist, does not parse or contradicts another one."""


class DataError(VattError, RuntimeError):
    """Data that a run cannot go on with. The message names the way out."""


class RunError(VattError, RuntimeError):
    """The run cannot go on; the message says why and what to do."""


class MissingPackage(VattError, ImportError):
    """A package of an extra that is not installed; the message names the extra."""


class RemoteError(RunError):
    """An error that rank 0 reports; the other ranks stop with it and say nothing. `cause` is that error."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.exit_code = cause.exit_code if isinstance(cause, VattError) else 1


class RankFinished(Exception):
    """This rank has done its part; the first one goes on alone."""
