"""The error classes of retool-env, one tree.

Each class is a `RetoolError` and also a subclass of the fitting built-in error: `except ValueError`
catches a `SettingsError`. Commands show these errors, and errors of the operating system, in one
line. Any other error is a bug, and is shown with its traceback.
"""

from __future__ import annotations


class RetoolError(Exception):
    """The base of all errors of retool-env. The message names the fault and the remedy.

    RetoolError
    ├── SettingsError (ValueError)           a setting, option or argument is wrong
    │   ├── UnknownSetting (TypeError)       a setting is unknown or missing
    │   └── MissingFile (FileNotFoundError)  the file or folder of a setting was not found
    ├── DataError (ValueError)               a file or data set has wrong content
    │   ├── UnusableRow                      a row yields no problem (`retool_env.problems.columns`)
    │   └── MissingColumn                    a row lacks the question's or the answer's column
    ├── ProblemsUnavailable (FileNotFoundError)  the problems were not found
    ├── SandboxUnavailable (RuntimeError)    the sandbox cannot work here
    ├── GraderUnavailable (RuntimeError)     the grader's worker process cannot start
    ├── MissingPackage (ImportError)         an optional package is not installed
    ├── NotReproducible (RuntimeError)       programs that ran anew gave a different result
    ├── NotFinite (ArithmeticError)          weights or log-probs are NaN or infinite
    ├── PolicyUnavailable (RuntimeError)     temporary: the engine tries the episode again
    ├── RequestRefused (ValueError)          an API refuses one request
    ├── APIUnreachable (ConnectionError)     an API never answered
    ├── APIForbidden (PermissionError)       an API refuses the key
    └── RolloutsAbandoned                    a batch was abandoned, because the run must stop
    """


class SettingsError(RetoolError, ValueError):
    """A setting is unknown, or its value is wrong; the message says what to write instead."""


class UnknownSetting(SettingsError, TypeError):
    """A setting is unknown or missing; the message lists the known settings."""


class MissingFile(SettingsError, FileNotFoundError):
    """The file or folder of a setting was not found."""


class DataError(RetoolError, ValueError):
    """A file or a data set has wrong content; the message names the location."""


class MissingColumn(DataError):
    """A row lacks the column of the question or the column of the answer."""


class ProblemsUnavailable(RetoolError, FileNotFoundError):
    """The problems are not on disk, and the Hub did not provide them; the message says why."""


class SandboxUnavailable(RetoolError, RuntimeError):
    """The sandbox cannot work on this machine; the message says how to repair it."""


class GraderUnavailable(RetoolError, RuntimeError):
    """The grader's worker process cannot start: the installation is broken, not the answer."""


class NotReproducible(RetoolError, RuntimeError):
    """A program of a record, run anew, gave a different result; the message names the call.

    No episode goes on from such a record: its prefix is left out, and counted.
    """


class NotFinite(RetoolError, ArithmeticError):
    """Weights or log-probs are NaN or infinite: a training diverged, or a checkpoint is broken."""


class MissingPackage(RetoolError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class PolicyUnavailable(RetoolError, RuntimeError):
    """The policy has a temporary failure: a server is down, or a connection broke.

    The engine tries the episode again.
    """


class RequestRefused(RetoolError, ValueError):
    """An API refuses one request, which is too long or against its rules, but may accept others."""


class APIUnreachable(RetoolError, ConnectionError):
    """An API never answered: its address is wrong, or the server does not run."""


class APIForbidden(RetoolError, PermissionError):
    """An API refuses the key or requires one, or the quota of the key is used up."""


class RolloutsAbandoned(RetoolError):
    """All processes abandoned the rollouts of a batch, because one process was told to stop."""
