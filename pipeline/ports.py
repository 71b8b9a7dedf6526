"""Every port: what the journey asks of the world. The docstrings are the contract.

Adapters translate foreign exceptions into `pipeline.errors`, raise nothing else, and never retry by themselves:
retries happen in one place per port, outside the adapter.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

Buffer = bytes | bytearray | memoryview
"""Anything that holds bytes; an adapter reads it before it returns and keeps no reference."""


class Clock(Protocol):
    """Time, passed in so that tests own it."""

    def now(self) -> datetime:
        """Wall time, UTC, aware. For records and names only; it may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards. For every limit and timer."""
        ...


class FileSystem(Protocol):
    """The disk below the interim store. Synchronous: callers choose the thread.

    Handles are file descriptors of the adapter. Raises `StoreFullError` (ENOSPC, EDQUOT), `StoreBusyError` (EMFILE,
    ENFILE, ENOMEM), `FileNotFoundError`, `FileExistsError`, and `StoreIoError` for everything else. Only `sync`,
    `sync_directory` and `sync_volume` make anything durable. Files are made 0600, directories 0700.
    """

    def create(self, path: str) -> int:
        """Open a new file for reading and writing; `FileExistsError` if the name is taken."""
        ...

    def open(self, path: str, *, write: bool = False) -> int:
        """Open an existing file. Follows no symbolic link."""
        ...

    def append(self, handle: int, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers` at the end of the file. On failure the file is cut back to where it was."""
        ...

    def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        """Read up to `size_bytes` from `offset`; fewer only at the end of the file."""
        ...

    def read_into(self, handle: int, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; give back how many bytes there were."""
        ...

    def size(self, handle: int) -> int:
        """Length of the file in bytes."""
        ...

    def allocate(self, handle: int, size_bytes: int) -> None:
        """Make the file that long, every byte of it really on the disk (posix_fallocate); what it holds stays."""
        ...

    def truncate(self, handle: int, size_bytes: int) -> None:
        """Cut the file."""
        ...

    def sync(self, handle: int) -> None:
        """Make the file's bytes durable. After a failure the handle must not be synced again."""
        ...

    def close(self, handle: int) -> None:
        """Let the handle go. Never raises."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in one step; a file of that name is replaced."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a name; nothing happens if it is gone already."""
        ...

    def make_directory(self, path: str) -> None:
        """Make a directory and its missing parents, each one's entry durable. Nothing happens if it exists."""
        ...

    def lock(self, handle: int) -> None:
        """Hold a file as this handle's alone, among processes too, until `unlock` or `close`.

        Raises `StoreBusyError` if another one does not let it go within two seconds. They get it in turns.
        """
        ...

    def unlock(self, handle: int) -> None:
        """Let it go. Never raises."""
        ...

    def is_at(self, handle: int, path: str) -> bool:
        """Tell whether that path names this very file still."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        ...

    def sync_volume(self, path: str) -> None:
        """Make durable all that was written to the volume that holds `path` (syncfs)."""
        ...

    def names(self, path: str) -> list[str]:
        """Names in a directory, unordered; empty if there is no such directory. Follows no symbolic link."""
        ...

    def sorted_out(self, path: str) -> tuple[list[str], list[str]]:
        """`names` in two: plain files, and all else (links, directories, pipes). Opens none of them."""
        ...

    def free_bytes(self, path: str) -> int:
        """Bytes that may still be written to the volume that holds `path`."""
        ...

    def free_inodes(self, path: str) -> int | None:
        """How many files may still be made on that volume; `None` where it sets no limit."""
        ...


# --- the tenant's bucket


@dataclass(frozen=True, slots=True)
class PutRequest:
    """What an object is to be, apart from its bytes."""

    key: str
    size_bytes: int
    crc64nvme: str
    """Base64 of the big-endian CRC64NVME of the whole object, as S3 writes it."""
    content_type: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What a bucket says about one object: from the answer to a put, or from HEAD. `None` = it did not say."""

    key: str
    size_bytes: int | None = None
    etag: str | None = None
    version_id: str | None = None
    crc64nvme: str | None = None
    checksum_type: str | None = None
    """`FULL_OBJECT` or `COMPOSITE`."""
    encryption: str | None = None
    kms_key_arn: str | None = None
    bucket_key: bool | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object, or a delete marker, as a listing names it."""

    key: str
    version_id: str
    """`null` where the bucket kept no versions when it was written."""
    is_latest: bool
    is_marker: bool = False


@dataclass(frozen=True, slots=True)
class PartFacts:
    """One uploaded part, as CompleteMultipartUpload needs it."""

    number: int
    etag: str
    crc64nvme: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that an earlier attempt left."""

    key: str
    upload_id: str


class ObjectExistsError(Exception):
    """The create-only write found the key taken (412): "maybe mine"."""


class UploadLostError(Exception):
    """The multipart upload is gone (NoSuchUpload): completed, aborted or expired; or it conflicts (409)."""


class Destination(Protocol):
    """One bucket of one instance, seen through its storage configuration (bucket, KMS key, owner).

    All writes are create-only (`If-None-Match: *`), SSE-KMS with the configured key's full ARN and a Bucket Key, with
    `ExpectedBucketOwner`. Raises `DestinationHeldError` (access, bucket missing, KMS key refused: codes in
    `HoldCode`), `DestinationRefusedError` (can never work for this object), `DestinationBusyError` for all else; and
    the two exceptions above where a method says so.
    """

    async def put(self, request: PutRequest, body: Buffer) -> ObjectFacts:
        """PutObject. Raises `ObjectExistsError`."""
        ...

    async def create_multipart(self, request: PutRequest) -> str:
        """Begin a multipart upload with a full-object CRC64NVME; give back its id."""
        ...

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer, crc64nvme: str) -> PartFacts:
        """Send one part. Raises `UploadLostError`."""
        ...

    async def complete_multipart(self, request: PutRequest, upload_id: str, parts: Sequence[PartFacts]) -> ObjectFacts:
        """Finish it, create-only, with the whole object's checksum. Raises `ObjectExistsError`, `UploadLostError`."""
        ...

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Give it up; nothing happens if it is gone already."""
        ...

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """List multipart uploads whose key begins with `prefix`, all pages."""
        ...

    async def head(self, key: str) -> ObjectFacts | None:
        """Ask about an object, checksums included; `None` if there is none."""
        ...

    async def read(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Read part of an object."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object: only ever one that a probe made."""
        ...


class Rewritable(Destination, Protocol):
    """A bucket whose objects may be encrypted anew: the only place that overwrites, and only what it has seen.

    Everything written goes under the configured KMS key, on condition that the object still has the ETag `over`.
    Raises `ObjectExistsError` if it has another one, or is gone; all else as `Destination`. Not every store has every
    way, or keeps the condition: try each on an object of your own first. A store that does not know
    `update_encryption` may take it for a plain write and *replace the object*.
    """

    def versions(self, prefix: str) -> AsyncIterator[Sequence[ObjectVersion]]:
        """List every version and delete marker whose key begins with `prefix`, page by page."""
        ...

    async def head_version(self, key: str, version_id: str | None) -> ObjectFacts | None:
        """Ask about one version of an object, checksums included; `None` if there is none."""
        ...

    async def update_encryption(self, key: str) -> None:
        """UpdateObjectEncryption: the latest version, in its place; takes no condition."""
        ...

    async def copy_over(self, request: PutRequest, over: str) -> None:
        """CopyObject of an object onto itself, with its metadata; up to 5 GiB."""
        ...

    async def copy_part(
        self, key: str, upload_id: str, number: int, first: int, size_bytes: int, over: str
    ) -> PartFacts:
        """UploadPartCopy of a range of the object itself."""
        ...

    async def put_over(self, request: PutRequest, body: Buffer, over: str) -> None:
        """PutObject in place of an object."""
        ...

    async def complete_over(self, request: PutRequest, upload_id: str, parts: Sequence[PartFacts], over: str) -> None:
        """Finish a multipart upload in place of an object, with the whole object's checksum."""
        ...


# --- events out


class EventSink(Protocol):
    """Where status events go besides their durable file. At least once: a sink may see an event twice."""

    async def send(self, events: Sequence[bytes]) -> None:
        """Take JSON events, in order. Raises `DeferError` if any was not taken; all are then sent again."""
        ...


# --- events in


@dataclass(frozen=True, slots=True)
class QueueMessage:
    """One message, ours until its visibility ends. `repr` shows no body."""

    body: bytes = field(repr=False)
    receipt: str = field(repr=False)
    id: str


class EventQueue(Protocol):
    """A queue that events arrive on. It is only ever a hint: messages may be lost, repeated, reordered or late.

    Raises `DeferError` for whatever goes wrong.
    """

    async def receive(self, most: int = 10, wait: timedelta = timedelta(0)) -> list[QueueMessage]:
        """Take up to `most` messages; wait for the first as long as `wait`."""
        ...

    async def extend(self, message: QueueMessage, seconds: int) -> None:
        """Keep a message from others for `seconds` from now."""
        ...

    async def delete(self, messages: Sequence[QueueMessage]) -> list[QueueMessage]:
        """Remove messages; give back those that were not removed and will come again."""
        ...
