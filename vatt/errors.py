"""Errors that a user can cause. Each knows the exit code its command ends with."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that does not exist, does not parse or contradicts another one."""


class DataError(RuntimeError):
    """Data that a run cannot go on with. The message names the way out."""


class RunError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


class Elsewhere(RunError):
    """An error that rank 0 reports; the other ranks stop with it and say nothing. `cause` is that error."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Finished(Exception):
    """This rank has done its part; the first one goes on alone."""
