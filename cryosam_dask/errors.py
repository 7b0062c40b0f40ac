"""Errors a user can act on: one line that says what, where, expected, found, and what to do.

The command line prints the message alone and exits with code 2; anything that is not a
`CryosamError` is a defect of the program and keeps its traceback.
"""

from __future__ import annotations


class CryosamError(Exception):
    """Base of all errors that the user can act on."""

    exit_code = 2


class InputError(CryosamError):
    """An input file, a point or an option's value can't be used as it is."""


class SettingsError(CryosamError):
    """A setting is unknown, out of range, or contradicts another."""


class StoreError(CryosamError):
    """The output store can't be opened, created, or continued."""


class ModelError(CryosamError):
    """A model is unknown, or its weights are missing or not the expected ones."""


class DeviceError(CryosamError):
    """The device asked for is not there."""


class MemoryLimitError(CryosamError):
    """A unit of a stage would not fit in a worker's memory."""


class ExecutionError(CryosamError):
    """Units failed, or the scheduler could not be reached."""

    exit_code = 1
