"""The name keys of one ring: what makes tags and keyed hashes. Each lies sealed in the ring files of its data keys.

There is one, carried over from data key to data key; several only if one could not be had when the KMS key changed.
"""

from collections.abc import Awaitable, Callable
from uuid import UUID

from pipeline.crypt.keycopies import Copy, KeyCopies, Use
from pipeline.crypt.ringfiles import RingFiles
from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError
from pipeline.ids import KeyId

Unwrap = Callable[[KeyId, Use], Awaitable[Copy]]
"""Give a data key with its name key, from memory or by KMS."""


class NameKeys:
    """Finds them."""

    def __init__(self, files: RingFiles, copies: KeyCopies, unwrap: Unwrap) -> None:
        self._files = files
        self._copies = copies
        self._unwrap = unwrap

    async def all(self, writing: Copy) -> list[bytes]:
        """Give every name key, that of `writing` first.

        Raises:
            KeyUnavailableError, KeyBusyError: the current KMS key can't be used; one might be left out.

        """
        known: dict[UUID, bytes] = {writing.name_key_id: writing.name_key}
        for key_id in self._files.newest_first():
            file = self._files.get(key_id)
            if file is not None and file.name_key_id not in known:
                copy = await self._copy_of(key_id)
                if copy is not None:
                    known[copy.name_key_id] = copy.name_key
        return list(known.values())

    async def carried(self) -> tuple[UUID, bytes] | None:
        """Find the name key for a new data key: the ring's newest that can be had. Raises as `all`."""
        for key_id in self._files.newest_first():
            copy = await self._copy_of(key_id)
            if copy is not None:
                return copy.name_key_id, copy.name_key
        return None

    async def _copy_of(self, key_id: KeyId) -> Copy | None:
        """Give a copy with the name key of a ring file; `None` if the file, or the KMS key before, is unusable.

        While the *current* KMS key can't be used this raises: better no answer than one that leaves a name out.
        """
        file = self._files.get(key_id)
        if file is None:
            return None
        for copy in self._copies:
            if copy.name_key_id == file.name_key_id:
                return copy
        try:
            return await self._unwrap(key_id, Use.OPEN)
        except (KeyUnavailableError, KeyBusyError) as error:
            mismatch = isinstance(error, KeyUnavailableError) and error.code is HoldCode.KEY_MISMATCH
            if mismatch or file.wrapped_under(self._files.current_arn) is None:
                return None
            raise
