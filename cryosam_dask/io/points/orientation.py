"""Orientations of particles: the columns `rot`, `tilt`, `psi`, degrees, and how other conventions become these.

They are RELION's `rlnAngleRot/Tilt/Psi`: A = (Rz(rot) · Ry(tilt) · Rz(psi))ᵀ turns the reference into the particle as
it lies in the tomogram, R being right-handed rotations of x, y, z columns (`Euler::anglesToMatrix3` in RELION's
`Euler_angles_relion.h`, and `getMatrix4x4` in `particle_set.cpp`, "from particle space to tomogram space").

TOM, AV3, STOPGAP and PyTom write the same rotation as A = Rz(psi) · Rx(theta) · Rz(phi) (STOPGAP's
`sg_euler2matrix.m`), Dynamo as (Rz(narot) · Rx(tilt) · Rz(tdrot))ᵀ: tdrot = −psi, tilt = −theta, narot = −phi
(STOPGAP's `sg_motl_stopgap_to_dynamo.m`). Rx(t) = Rz(−90°) · Ry(t) · Rz(90°) turns one kind of angles into the other,
exactly:

    rot = 90° − phi        tilt = theta        psi (RELION) = −90° − psi (TOM)

copick and the CryoET Data Portal have A itself. Where all of a file's particles lie as the reference does (angles of 0,
unit matrices), it says nothing of orientations, and there are no such columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cryosam_dask.io.points.base import DIGITS, Columns, Float64

if TYPE_CHECKING:
    import pandas as pd

ANGLES = ("rot", "tilt", "psi")

_POLE = 1e-8  # of sin(tilt), under which rot and psi turn about one axis


def columns(angles: Float64) -> Columns:
    """(n, 3) rot, tilt, psi as columns; no columns if all are 0."""
    return {name: angles[:, i] for i, name in enumerate(ANGLES)} if angles.any() else {}


def has_angles(table: pd.DataFrame) -> bool:
    return set(ANGLES) <= set(table.columns)


def angles_of(table: pd.DataFrame) -> Float64:
    """(n, 3) rot, tilt, psi of a table, 0 where it has none."""
    if not has_angles(table):
        return np.zeros((len(table), 3))
    angles: Float64 = table[list(ANGLES)].to_numpy(dtype=float)
    return angles


def of_zxz(phi_theta_psi: Float64) -> Columns:
    """TOM's angles (n, 3), phi, theta, psi, as columns; none where all are 0."""
    if not phi_theta_psi.any():
        return {}
    phi, theta, psi = phi_theta_psi.T
    return columns(_tidy(np.stack([90 - phi, theta, -90 - psi], axis=1)))


def to_zxz(table: pd.DataFrame) -> Float64:
    """(n, 3) phi, theta, psi in TOM's convention; 0 where the table has no orientations."""
    if not has_angles(table):
        return np.zeros((len(table), 3))
    rot, tilt, psi = angles_of(table).T
    return _tidy(np.stack([90 - rot, tilt, -90 - psi], axis=1))


def of_matrices(matrices: Float64) -> Columns:
    """A (n, 3, 3), reference to tomogram, x, y, z, as columns; none where all are the identity."""
    return columns(_angles(matrices.transpose(0, 2, 1)))


def to_matrices(table: pd.DataFrame) -> Float64:
    """A (n, 3, 3), reference to tomogram, x, y, z."""
    return matrices(angles_of(table)).transpose(0, 2, 1)


def combined(particle: Float64, subtomogram: Float64) -> Columns:
    """RELION's two orientations, (n, 3) rot, tilt, psi each, as one: A = A(subtomogram) · A(particle)."""
    if not subtomogram.any():
        return columns(particle)
    return columns(_angles(matrices(particle) @ matrices(subtomogram)))


def matrices(angles: Float64) -> Float64:
    """Rz(rot) · Ry(tilt) · Rz(psi) (n, 3, 3) of angles (n, 3)."""
    (cr, ct, cp), (sr, st, sp) = np.cos(np.radians(angles)).T, np.sin(np.radians(angles)).T
    rows = (
        (cr * ct * cp - sr * sp, -cr * ct * sp - sr * cp, cr * st),
        (sr * ct * cp + cr * sp, -sr * ct * sp + cr * cp, sr * st),
        (-st * cp, st * sp, ct),
    )
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def _angles(turned: Float64) -> Float64:
    """(n, 3) rot, tilt, psi of Rz(rot) · Ry(tilt) · Rz(psi) (n, 3, 3); psi is 0 where only one of the two is told."""
    sine = np.hypot(turned[:, 0, 2], turned[:, 1, 2])
    tilt = np.arctan2(sine, turned[:, 2, 2])
    sign = np.where(turned[:, 2, 2] < 0, -1.0, 1.0)
    free = sine > _POLE
    pole = np.arctan2(sign * turned[:, 1, 0], sign * turned[:, 0, 0])
    rot = np.where(free, np.arctan2(turned[:, 1, 2], turned[:, 0, 2]), pole)
    psi = np.where(free, np.arctan2(turned[:, 2, 1], -turned[:, 2, 0]), 0.0)
    return _tidy(np.degrees(np.stack([rot, tilt, psi], axis=1)))


def _tidy(angles: Float64) -> Float64:
    """Angles between −180° and 180°, 180° included, rounded to remove the error of a conversion."""
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        return np.asarray(np.round(180 - (180 - np.round(angles, DIGITS)) % 360, DIGITS) + 0.0)
