"""Where a store keeps something of an instance, and its removal there, place by place. Synchronous, idempotent.

What stays: the audit trail, the receipts of deliveries, status events and traces of what was discarded; they hold ids
and digests, and nothing of what was recorded.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

import msgspec

from pipeline.crypt.ringfile import SUFFIX, RingFile
from pipeline.delivery.proof import read_receipt
from pipeline.erasure.progress import ErasedKey, Inventory
from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.ids import InstanceId
from pipeline.interim.logs import whole_lines
from pipeline.interim.states import SHARDS, ArtifactName, State, parse_name
from pipeline.ports import FileSystem

_UNFINISHED = ".tmp"
_SIZE_LIMIT = 64 * 1024

KEPT: tuple[tuple[str, str], ...] = (
    ("audit", "who did what with which key; ids, no content"),
    ("receipts", "which object was delivered, with its digests"),
    ("events", "status events that were told; ids, no content"),
    ("discards", "traces of what was discarded before"),
)
"""What stays of an instance here, and what it is."""


class Places:
    """The places of one instance in the store at `root`."""

    def __init__(self, root: str, files: FileSystem, instance: InstanceId) -> None:
        self._root = root
        self._files = files
        self._instance = instance

    def inventory(self) -> Inventory:
        """Tell what there is, before any of it goes."""
        counts: Counter[str] = Counter()
        buckets: Counter[str] = Counter()
        for name in self.artifacts():
            counts[str(name.standing)] += 1
            if name.standing is State.DELIVERED:
                buckets.update(self._bucket(f"{self._root}/artifacts/{name.path}"))
        for day in self._files.names(f"{self._root}/receipts/{self._instance}"):
            raw = self._read(f"{self._root}/receipts/{self._instance}/{day}", None) or b""
            for line in whole_lines(raw):
                with suppress(SegmentForgedError):
                    buckets[f"s3://{read_receipt(line).bucket}"] += 1
        for place, paths in self._others():
            counts[place] += len(paths)
        return Inventory(data_keys=tuple(self._keys()), counts=dict(counts), buckets=dict(buckets))

    def artifacts(self) -> Iterator[ArtifactName]:
        """Give every artifact and receipt of the instance, by its name now."""
        for shard in SHARDS:
            for text in self._files.names(f"{self._root}/artifacts/{shard}"):
                with suppress(SegmentForgedError):
                    name = parse_name(text)
                    if name.instance_id == self._instance:
                        yield name

    def destroy_keys(self) -> int:
        """Remove every wrapped data key of the instance, durably; give the number of files."""
        return self._clear(self.key_folder, [name for name in self._files.names(self.key_folder) if SUFFIX in name])

    @property
    def key_folder(self) -> str:
        """Where the wrapped data keys of the instance's recordings lie."""
        return f"{self._root}/keys/{self._instance}"

    def clear_others(self) -> dict[str, int]:
        """Remove what is neither an artifact nor a key: journal, holds, what is missing, what was cut off."""
        cleared: Counter[str] = Counter()
        for place, paths in self._others():
            by_folder: dict[str, list[str]] = {}
            for path in paths:
                folder, _, name = path.rpartition("/")
                by_folder.setdefault(folder, []).append(name)
            for folder, names in by_folder.items():
                cleared[place] += self._clear(folder, names)
        return dict(cleared)

    def left(self) -> list[str]:
        """Name what is there still."""
        return [
            *(f"keys/{name}" for name in self._files.names(self.key_folder) if SUFFIX in name),
            *(f"artifacts/{name.path}" for name in self.artifacts()),
            *(path.removeprefix(f"{self._root}/") for _, paths in self._others() for path in paths),
        ]

    # --- inside

    def _others(self) -> Iterator[tuple[str, list[str]]]:
        """Give the other places and the files in them."""
        root, instance = self._root, self._instance
        journal = f"{root}/journal/{instance}"
        yield (
            "journal",
            [
                f"{journal}/{day}/{name}"
                for day in self._files.names(journal)
                for name in self._names(f"{journal}/{day}")
            ],
        )
        missing = f"{root}/missing/{instance}"
        yield "missing", [f"{missing}/{name}" for name in self._files.names(missing)]
        yield (
            "grants",
            [f"{self.key_folder}/{name}" for name in self._files.names(self.key_folder) if SUFFIX not in name],
        )
        for place in ("holds", "changes"):
            names = self._files.names(f"{root}/{place}")
            yield place, [f"{root}/{place}/{name}" for name in names if name.startswith(f"{instance}.")]
        lost = self._files.names(f"{root}/lost+found")
        yield "lost+found", [f"{root}/lost+found/{name}" for name in lost if instance.hex in name]
        yield (
            "unfinished",
            [
                f"{root}/artifacts/{shard}/{name}"
                for shard in SHARDS
                for name in self._files.names(f"{root}/artifacts/{shard}")
                if name.endswith(_UNFINISHED) and instance.hex in name
            ],
        )

    def _names(self, folder: str) -> list[str]:
        """List a folder; something else of that name holds nothing of ours."""
        try:
            return self._files.names(folder)
        except StoreIoError:
            return []

    def _clear(self, folder: str, names: list[str]) -> int:
        for name in names:
            self._files.unlink(f"{folder}/{name}")
        if names:
            self._files.sync_directory(folder)
        return len(names)

    def _keys(self) -> Iterator[ErasedKey]:
        for name in sorted(self._files.names(self.key_folder)):
            if not name.endswith(SUFFIX):
                continue
            try:
                key_id = UUID(hex=name.partition(".")[0])
            except ValueError:
                continue
            try:
                raw = self._read(f"{self.key_folder}/{name}", _SIZE_LIMIT) or b""
                file = msgspec.json.decode(raw, type=RingFile)
            except (StoreIoError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                yield ErasedKey(key_id=key_id)
            else:
                arns = tuple(wrapped.kms_key_arn for wrapped in file.wrapped)
                yield ErasedKey(key_id=key_id, created_at=file.created_at, kms_key_arns=arns)

    def _bucket(self, path: str) -> list[str]:
        try:
            return [f"s3://{read_receipt(self._read(path, None) or b'').bucket}"]
        except (SegmentForgedError, StoreIoError):
            return []

    def _read(self, path: str, limit: int | None) -> bytes | None:
        try:
            handle = self._files.open(path)
        except FileNotFoundError:
            return None
        try:
            return self._files.read(handle, 0, self._files.size(handle) if limit is None else limit)
        finally:
            self._files.close(handle)
