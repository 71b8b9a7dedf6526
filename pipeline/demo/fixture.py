"""What the demo sends, and what must not be found afterwards: `fixtures/`, read. See its README."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from pipeline.demo.search import Marker
from pipeline.ids import InstanceId, Kind

_SHORTEST = 12
"""Bytes of a chat's text that is searched for: shorter ones could be found by chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One recording."""

    instance_id: InstanceId
    contact: str
    kind: Kind
    file: Path
    """Media to be sent; of a chat, the transcript that its events must become."""
    source_id: str
    name: str | None
    content_type: str
    started: str

    @property
    def is_chat(self) -> bool:
        """It comes as events."""
        return self.kind is Kind.CHAT

    @property
    def is_live(self) -> bool:
        """Its length is not known before its end: fragmented MP4, as a recorder writes it."""
        return self.file.stem.endswith("-live")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An instance and the files of its events: lines of JSON, one EventBridge envelope each."""

    instance_id: InstanceId
    alias: str
    contact_events: Path
    chat_events: Path


@dataclass(frozen=True, slots=True)
class Fixture:
    """All of it."""

    tenants: tuple[Tenant, ...]
    samples: tuple[Sample, ...]
    markers: tuple[Marker, ...]


def load(directory: Path) -> Fixture:
    """Read `fixtures/`."""
    plan = json.loads((directory / "demo.json").read_text(encoding="utf-8"))
    samples = tuple(_sample(directory, each) for each in plan["recordings"])
    events = {each["instance"]: each["events"] for each in plan["contactEvents"]}
    chats = {each["instance"]: each["events"] for each in plan["recordings"] if each["kind"] == Kind.CHAT}
    tenants = tuple(
        Tenant(
            InstanceId(UUID(each["id"])),
            each["alias"],
            directory / events[each["id"]],
            directory / chats[each["id"]],
        )
        for each in plan["instances"]
    )
    return Fixture(tenants, samples, tuple(_markers(directory, tenants)))


def lines(path: Path) -> list[bytes]:
    """Read lines of JSON. They end in a line feed and nothing else: texts may hold what some tools take for an end."""
    return [line for line in path.read_bytes().split(b"\n") if line.strip()]


def chat_items(path: Path, contact: str) -> dict[str, Any]:
    """Give the items of a contact's chat as they are sent, by their id; of repeated ones, any."""
    details = [json.loads(line)["detail"] for line in lines(path)]
    items = [each["item"] for each in details if each.get("contactId") == contact and "item" in each]
    return {item["Id"]: item for item in items}


def _sample(directory: Path, given: Mapping[str, Any]) -> Sample:
    return Sample(
        instance_id=InstanceId(UUID(given["instance"])),
        contact=given["contact"],
        kind=Kind(given["kind"]),
        file=directory / (given["transcript"] if given["kind"] == Kind.CHAT else given["media"]),
        source_id=given["source"] or "",
        name=given["name"],
        content_type=given["contentType"],
        started=given["started"],
    )


def _markers(directory: Path, tenants: tuple[Tenant, ...]) -> list[Marker]:
    """Collect the markers: of the media, of what is said in chats, of who calls; each once."""
    given = json.loads((directory / "markers.json").read_text(encoding="utf-8"))
    found = {
        bytes.fromhex(each["hex"]): f"{file} at {each['offset']}"
        for file, samples in given["media"].items()
        for each in samples
    }
    said = [(text, f"chat {contact}") for contact, texts in given["chats"].items() for text in texts]
    said += [(text, "a contact event") for text in given["contactEvents"]]
    for tenant in tenants:
        for line in lines(tenant.chat_events):
            text = json.loads(line)["detail"].get("item", {}).get("Content", "")
            said.append((text, tenant.chat_events.name))
    for text, place in said:
        for form in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]):
            raw = form.encode()
            if len(raw) >= _SHORTEST:
                found.setdefault(raw, place)
    return [Marker(raw, place) for raw, place in found.items()]
