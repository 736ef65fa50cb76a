"""The errors of retool-env, one tree.

Each is a `RetoolError`, and also the built-in error that says the same in general: whoever catches `ValueError`
catches a `SettingsError` too. Commands show these errors in one line. An error that is not in the tree, and not the
operating system's, is a mistake in a program, and is shown with its traceback.
"""

from __future__ import annotations


class RetoolError(Exception):
    """The base of every error of ours. Its text says what is wrong and what to do.

    RetoolError
    ├── SettingsError (ValueError)           a setting, an option or an argument that can't be used
    │   ├── UnknownSetting (TypeError)       a setting that there is not, or one that is missing
    │   └── MissingFile (FileNotFoundError)  a file or folder that a setting names
    ├── DataError (ValueError)               a file or a data set holds something else than it should
    │   ├── UnusableRow                      a row gives no problem (`retool_env.problems.columns`)
    │   └── MissingColumn                    a row has no column for the question or the answer
    ├── ProblemsUnavailable (FileNotFoundError)
    ├── SandboxUnavailable (RuntimeError)
    ├── GraderUnavailable (RuntimeError)
    ├── MissingPackage (ImportError)         an optional package is not installed
    ├── PolicyUnavailable (RuntimeError)     no turn for now; the engine tries the episode again
    ├── RequestRefused (ValueError)          an API does not answer a request, and might answer others
    ├── APIUnreachable (ConnectionError)
    ├── APIForbidden (PermissionError)       an API refuses the key
    └── RolloutsAbandoned                    a batch's rollouts were left, since the run is to stop
    """


class SettingsError(RetoolError, ValueError):
    """A setting that is unknown or of the wrong kind; the message says what to write instead."""


class UnknownSetting(SettingsError, TypeError):
    """A setting that there is not, or one that is missing; the message lists those that there are."""


class MissingFile(SettingsError, FileNotFoundError):
    """There is no file, or no folder, of the name that a setting gives."""


class DataError(RetoolError, ValueError):
    """A file or a data set holds something else than it should; the message names the place."""


class MissingColumn(DataError):
    """A row has no column for the question, or none for the answer."""


class ProblemsUnavailable(RetoolError, FileNotFoundError):
    """The problems are neither on disk nor on a Hub that can be reached: see the message."""


class SandboxUnavailable(RetoolError, RuntimeError):
    """The sandbox cannot work on this machine. The message says what would make it work."""


class GraderUnavailable(RetoolError, RuntimeError):
    """The worker process can't be started: the installation is broken, not the answer."""


class MissingPackage(RetoolError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class PolicyUnavailable(RetoolError, RuntimeError):
    """No turn can be had for now: servers are down, a connection broke. The engine tries the episode again."""


class RequestRefused(RetoolError, ValueError):
    """An API would not answer this request, and might answer others: it is too long for it, say, or against its rules."""


class APIUnreachable(RetoolError, ConnectionError):
    """An API was not reached even once: its address is wrong, or it does not run."""


class APIForbidden(RetoolError, PermissionError):
    """An API refuses the key, or wants one, or its quota is used up."""


class RolloutsAbandoned(RetoolError):
    """A batch's rollouts were left, on all processes, because one was asked to stop."""
