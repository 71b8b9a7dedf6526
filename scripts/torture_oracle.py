"""Compares what is in the buckets with what was acknowledged, and searches every file for what was said.

A recording that was acknowledged is there once, byte for byte. Of a body that broke off its beginning may be there too,
marked as recovered; if its source never came back, at least as much of it as the service had called durable.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
from torture_ledger import MARKER, Chat, Ledger, Recording
from torture_outcome import Outcome

from pipeline.adapters.aws import open_client
from pipeline.audit.hourly import OBJECTS
from pipeline.demo.search import Marker, check, search
from tests.e2e.journey import STAMP
from tests.sites import Party, Site

AT_A_TIME = 8
MARKERS = (Marker(MARKER, "a recording, or a message of a chat"),)


@dataclass(frozen=True, slots=True)
class Found:
    """An object."""

    key: str
    recording: str
    generation: str
    size_bytes: int
    verdict: str
    """`whole`, `beginning`, `transcript` or `wrong`."""
    items: tuple[str, ...] = ()
    """Of a transcript."""


@dataclass
class Oracle:
    """Everything that was found so far; what is broken stays in, under its own name, and counts once."""

    site: Site
    ledger: Ledger
    lost: dict[str, str] = field(default_factory=dict)
    duplicated: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    hits: set[str] = field(default_factory=set)
    _found: dict[str, dict[str, Found]] = field(default_factory=dict)
    """By bucket and key, what was read and compared."""

    def outcome(self, rounds: int, seed: int) -> Outcome:
        """Count."""
        return Outcome(rounds, len(self.lost), len(self.duplicated), len(self.wrong), len(self.hits), seed)

    def problems(self) -> list[str]:
        """Say what is broken."""
        told = [("lost", self.lost), ("duplicated", self.duplicated), ("wrong", self.wrong)]
        broken = [f"{kind}: {name}: {why}" for kind, names in told for name, why in names.items()]
        return [*broken, *(f"plaintext: {file}" for file in sorted(self.hits))]

    async def check(self, *, everything: bool) -> None:
        """Compare all; objects that were read before are read again only if `everything` is asked for."""
        if everything:
            self._found.clear()
        by_contact: dict[str, list[Found]] = defaultdict(list)
        for party in self.site.parties:
            found = await self._read(party)
            self._check_told(party, found)
            for each in found.values():
                by_contact[_contact(each.key)].append(each)
        for contact, objects in by_contact.items():
            if contact not in self.ledger.recordings and contact not in self.ledger.chats:
                self.wrong[contact] = f"nobody sent it: {[each.key for each in objects]}"
        for recording in self.ledger.recordings.values():
            self.judge(recording, by_contact[recording.contact])
        for chat in self.ledger.chats.values():
            self.judge_chat(chat, by_contact[chat.contact])
        self.hits |= await anyio.to_thread.run_sync(self._search)

    # --- reading

    async def _read(self, party: Party) -> dict[str, Found]:
        """Read what is in a party's bucket and not known yet."""
        known = self._found.setdefault(party.bucket, {})
        limiter = anyio.CapacityLimiter(AT_A_TIME)
        async with open_client("s3", self.site.reader) as s3:
            keys = [
                each["Key"]
                async for page in s3.get_paginator("list_objects_v2").paginate(Bucket=party.bucket)
                for each in page.get("Contents", [])
                if not each["Key"].startswith(OBJECTS)
            ]
            for gone in known.keys() - set(keys):
                self.lost[gone] = "was in the bucket, and is no more"

            async def read(key: str) -> None:
                async with limiter:
                    answer = await s3.get_object(Bucket=party.bucket, Key=key)
                    known[key] = self._compare(key, answer["Metadata"], await answer["Body"].read())

            async with anyio.create_task_group() as group:
                for key in keys:
                    if key not in known:
                        group.start_soon(read, key, name=f"read {key}")
        return known

    def _compare(self, key: str, metadata: dict[str, str], body: bytes) -> Found:
        contact = _contact(key)
        verdict, items = "wrong", tuple[str, ...]()
        if contact in self.ledger.recordings:
            sent = self.ledger.recordings[contact].body()
            verdict = "whole" if body == sent else "beginning" if sent.startswith(body) else "wrong"
        elif contact in self.ledger.chats:
            said = json.loads(body)["Transcript"]
            verdict, items = "transcript", tuple(f"{each['Id']} {each['Content']}" for each in said)
        return Found(key, metadata["rid"], metadata["gen"], len(body), verdict, items)

    def _check_told(self, party: Party, found: dict[str, Found]) -> None:
        """Every object was told as published, with its flags; nothing was told that is not there."""
        quality: dict[str, list[str]] = {}
        for event in self.site.events(party):
            detail: dict[str, Any] = event["detail"]
            if detail["recordingStatus"] == "PUBLISHED":
                key = detail["recordingInfo"]["location"].partition(f"s3://{party.bucket}/")[2]
                quality[key] = detail.get("quality", [])
        for key in quality.keys() - found.keys():
            self.lost[key] = "was told to be in the bucket, and is not"
        for key in found.keys() - quality.keys():
            self.lost[key] = "is in the bucket, and nobody was told"
        for key, each in found.items():
            if each.verdict == "beginning" and "RECOVERED" not in quality.get(key, []):
                self.wrong[key] = "only a beginning, and not marked so"

    # --- judging

    def judge(self, sent: Recording, objects: list[Found]) -> None:
        """Compare a recording with the objects of its contact."""
        self._judge_objects(sent.contact, objects, told=sent.told)
        wholes = [each.key for each in objects if each.verdict == "whole"]
        if len(wholes) > 1:
            self.duplicated[sent.contact] = str(wholes)
        if sent.taken and not wholes:
            self.lost[sent.contact] = (
                f"all {sent.size_bytes} bytes, sent {sent.manner.name}, were acknowledged; found {objects}"
            )
        if sent.refused and objects:
            self.wrong[sent.contact] = f"it was refused; found {objects}"
        if not sent.taken:
            if len(objects) > 1:
                self.duplicated[sent.contact] = f"sent once, not even to its end; found {objects}"
            longest = max((each.size_bytes for each in objects), default=0)
            if longest < sent.durable_bytes:
                self.lost[sent.contact] = f"{sent.durable_bytes} bytes were acknowledged, {longest} are there"

    def _judge_objects(self, contact: str, objects: list[Found], *, told: bool) -> None:
        ids = {(each.recording, each.generation) for each in objects}
        if len(ids) < len(objects):
            self.duplicated[contact] = f"one generation in more than one object: {objects}"
        for each in objects:
            if each.verdict == "wrong":
                self.wrong[each.key] = f"{each.size_bytes} bytes that are not what was sent"
            if told and STAMP not in each.key:
                self.lost[each.key] = "an event that was acknowledged is not in its key"

    def judge_chat(self, chat: Chat, objects: list[Found]) -> None:
        """Compare a chat with its transcripts."""
        self._judge_objects(chat.contact, objects, told=chat.told)
        said = [f"i-{number} {text}" for number, text in enumerate(chat.texts)]
        there = [item for each in objects for item in each.items]
        if missing := [item for item in said[: chat.taken] if item not in there]:
            self.lost[chat.contact] = f"messages that were acknowledged: {missing}"
        if len(set(there)) < len(there):
            self.duplicated[chat.contact] = f"messages: {there}"
        if not set(there) <= set(said) or any(list(each.items) != sorted(each.items) for each in objects):
            self.wrong[chat.contact] = f"{there} for {said}"
        if chat.ended and not objects:
            self.lost[chat.contact] = "its end was acknowledged, and there is no transcript"

    def _search(self) -> set[str]:
        """Search what the service and its servers keep, logs and temporary files too."""
        check(MARKERS)
        return {str(hit.file) for hit in search(self.site.directory, MARKERS).hits}


def _contact(key: str) -> str:
    return key.rpartition("/")[2].partition("_")[0]
