"""The zarr store of a run or a tomogram that is not on a local disk: zarr's own, with fewer requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, StorePath, WrapperStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class RemoteStore(FsspecStore):
    """A store that tells with one request whether a key is there: a filesystem would also look for a folder of that
    name."""

    async def exists(self, key: str) -> bool:
        return await self.get(key, default_buffer_prototype(), RangeByteRequest(0, 1)) is not None


def as_known(group: zarr.Group) -> zarr.Group:
    """The same group, which was just opened, as one in which arrays are created without asking again for all groups
    above.

    zarr asks for each of them twice, which is most of the requests of a new array.
    """
    if not isinstance(group.store, RemoteStore):
        return group
    names = group.path.split("/") if group.path else []
    known = frozenset("/".join([*names[:count], "zarr.json"]) for count in range(len(names) + 1))
    place = StorePath(_Known(group.store, known), group.path)
    return zarr.Group(zarr.AsyncGroup(metadata=group.metadata, store_path=place))


class _Known(WrapperStore[RemoteStore]):
    """A store in which some keys are known to hold groups."""

    def __init__(self, store: RemoteStore, groups: frozenset[str]) -> None:
        super().__init__(store)
        self._groups = groups

    def _with_store(self, store: RemoteStore) -> _Known:
        return _Known(store, self._groups)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if key not in self._groups:
            await self._store.set_if_not_exists(key, value)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key in self._groups:
            return prototype.buffer.from_bytes(_GROUP)
        return await self._store.get(key, prototype, byte_range)


_GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
