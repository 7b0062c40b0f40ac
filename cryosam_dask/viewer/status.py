"""Errors of the page with the HTTP status that says what kind they are; all others of the user's are 400."""

from __future__ import annotations

from http import HTTPStatus

from cryosam_dask.errors import CryosamError, StoreError


class NotThereError(CryosamError):
    """Nothing of that name or version is there."""

    status = HTTPStatus.NOT_FOUND


class NotYetError(CryosamError):
    """It is being made; ask again soon."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class GoneError(CryosamError):
    """The run was deleted or moved while the page was open."""

    status = HTTPStatus.GONE


class DamagedError(StoreError):
    """A part of the run that was read is missing or damaged."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR


class BusyError(CryosamError):
    """Too many reads wait already; ask again soon."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


def status_of(error: CryosamError) -> int:
    """The HTTP status of an error: its attribute `status` if it has one."""
    return int(getattr(error, "status", HTTPStatus.BAD_REQUEST))
