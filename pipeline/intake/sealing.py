"""What stands at the end of an artifact: its manifest, and with it the object keys it may take. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal

from pipeline.checksums import checksum_text
from pipeline.crypt.contents import Counts, Manifest, Rendition
from pipeline.delivery.naming import object_keys
from pipeline.intake.contacts import Contact
from pipeline.intake.reception import Reception
from pipeline.interim.writer import Digests
from pipeline.status import Facts, Quality

COPY = "copy/1"
"""The renderer that gives the media as they came."""
CANARY = "\x00canary/"
"""Begins the source id of a recording that the service made itself. None from outside begins so."""
CANARY_PREFIX = "canary"
"""Where those lie in the bucket, instead of below the instance's prefix."""


def copy_rendition(digests: Digests, content_type: str, extension: str) -> Rendition:
    """Describe bytes that are delivered as they came."""
    return Rendition(
        renderer=COPY,
        size_bytes=digests.size_bytes,
        crc64nvme=checksum_text(digests.crc64nvme),
        sha256=digests.sha256,
        content_type=content_type,
        extension=extension,
    )


def manifest_of(
    reception: Reception,
    rendition: Rendition,
    *,
    contact: Contact | None,
    generation: int,
    ending: Literal["complete", "recovered"],
    quality: Sequence[Quality],
    item_digests: Sequence[str] = (),
) -> Manifest:
    """Make the manifest of an artifact whose bytes have all been written.

    Raises:
        RefuseError: no legal object key can be made for it.

    """
    storage = reception.tenant.instance.storage[reception.name.kind]
    if reception.head.source_id.startswith(CANARY):
        storage = replace(storage, prefix=CANARY_PREFIX)
    facts = facts_of(reception, contact)
    flags = {*quality, *((Quality.RECOVERED,) if ending == "recovered" else ())}
    tally = reception.writer.tally
    return Manifest(
        recording_id=reception.recording_id,
        generation=generation,
        contact=reception.head.contact,
        ending=ending,
        started=facts.start,
        ended=facts.end,
        counts=Counts(
            media_segments=tally.media_segments,
            media_bytes=reception.writer.digests.size_bytes,
            event_segments=tally.event_segments,
            event_bytes=tally.event_bytes,
        ),
        association_id=storage.association_id,
        bucket=storage.bucket,
        keys=object_keys(
            storage=storage,
            contact=reception.head.contact,
            stamp=_stamp(reception, contact),
            recording_id=reception.recording_id,
            generation=generation,
            extension=rendition.extension,
        ),
        quality=tuple(flag for flag in Quality if flag in flags),
        item_digests=tuple(item_digests),
        object=rendition,
    )


def facts_of(reception: Reception, contact: Contact | None) -> Facts:
    """Tell start and end of a recording as well as they are known: its source first, then the events."""
    expected = contact.expectation(reception.name.kind, reception.head.source_id) if contact else None
    return Facts(
        start=reception.head.started or (expected.start if expected else None),
        end=reception.ended or (expected.end if expected else None),
    )


def _stamp(reception: Reception, contact: Contact | None) -> datetime:
    """Take the contact's start, which all its recordings share; unknown: the source's word, then the first byte."""
    started = contact.started if contact else None
    return started or reception.head.started or reception.created
