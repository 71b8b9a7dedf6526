"""What the record store does by itself, again and again."""

import anyio

from pipeline.records.search import SearchIndexes
from pipeline.records.shelves import Shelves

_EVERY_S = 1.0


class Upkeep:
    """Drops the data keys whose time is over, and indexes of what is refused, also where nobody asks for anything."""

    def __init__(self, shelves: Shelves, search: SearchIndexes) -> None:
        self._shelves = shelves
        self._search = search

    async def run(self) -> None:
        """Do so until cancelled."""
        while True:
            for shelf in self._shelves:
                if shelf.ring is not None:
                    shelf.ring.expire()
            self._search.drop_refused()
            await anyio.sleep(_EVERY_S)
