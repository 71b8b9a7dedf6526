"""Contact events in, the service killed, a number's recordings found: with real processes, over the key server."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.ids import Kind
from tests.e2e.journey import contact_event, message, wav
from tests.node import process_node, until
from tests.records_site import RecordSite, quiet, record_site
from tests.sites import Party

pytestmark = pytest.mark.slow

NUMBER, SYSTEM, NAME = "+4930901820", "+4930111222", "Erika-Mustermann-0815"


def event(party: Party, contact: str, event_type: str, number: str = NUMBER) -> dict[str, Any]:
    made = contact_event(party, contact, event_type)
    made["detail"] |= {
        "customerEndpoint": {"type": "TELEPHONE_NUMBER", "address": number},
        "tags": {"aws:connect:systemEndpoint": SYSTEM},
        "attributes": {"name": NAME},
    }
    return made


async def shown(records: RecordSite, *arguments: str, given: str = "") -> list[dict[str, Any]]:
    config = str(records.site.write_settings())
    done = await records.cli(records.site.acme, *arguments, "--config", config, "--json", given=given.encode())
    assert done.exit_code == 0, done.output
    assert NAME not in done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def opened(records: RecordSite) -> list[dict[str, Any]]:
    return [
        each["requestParameters"]
        for each in records.site.audit(records.site.acme)
        if each["eventName"] == "RecordOpened" and each["requestParameters"].get("purpose")
    ]


async def test_a_numbers_recordings_are_found_after_a_kill_and_listed_also_without_the_key(tmp_path: Path) -> None:
    with quiet():
        async with record_site(tmp_path) as records, process_node(records.site) as running:
            acme, borealis = records.site.parties
            for party, number in ((acme, NUMBER), (borealis, NUMBER)):
                events = [event(party, "c-1", "INITIATED", number), event(party, "c-2", "QUEUED", "+4940123456")]
                assert (
                    await running.caller.post(party, [*events, message(party, "c-2", "i-1", "hello")])
                ).status == 202
            assert (await running.caller.post(acme, event(acme, "c-1", "COMPLETED"))).status == 202
            running.kill()
            await running.start()
            assert (await running.caller.put(acme, "c-1", "voice.wav", wav(4096))).status == 201
            await until(lambda: records.site.published(acme))
            await _find_and_open(records, tmp_path)
            records.keys.disable(records.service_arn.rpartition("/")[2])
            rows = await shown(records, "ls", "--instance", "acme", "--metadata")
            assert {row["contact"] for row in rows} == {"c-1", "c-2"}
            assert all("KMS" in row["metadataProblem"] for row in rows)
            config = str(records.site.write_settings())
            unknown = await records.cli(acme, "ls", "--number", "--config", config, given=NUMBER.encode())
            assert unknown.exit_code == 4, unknown.output
            running.kill()
        for file in tmp_path.rglob("*"):
            if file.is_file() and file.name != "metadata.json":
                content = file.read_bytes()
                assert not any(text.encode() in content for text in (NAME, "4930901820", "4930111222")), file


async def _find_and_open(records: RecordSite, folder: Path) -> None:
    acme = str(records.site.acme.instance.instance_id)
    (row,) = await shown(records, "ls", "--number", "--instance", "acme", "--reason", "T-1", given="+49 30 901820\n")
    assert (row["contact"], row["kind"], row["state"]) == ("c-1", Kind.VOICE, "delivered")
    assert {each["instanceId"] for each in await shown(records, "ls", "--number", given=SYSTEM)} > {acme}
    (chat,) = await shown(records, "ls", "--contact", "c-2", "--instance", "acme", "--metadata")
    assert (chat["kind"], chat["state"]) == (Kind.CHAT, "open")
    assert chat["metadata"]["eventType"] == "QUEUED"
    assert await shown(records, "ls", "--number", given="+4930000000") == []
    target = folder / "metadata.json"
    (told,) = await shown(records, "get", row["artifactId"], "--metadata", "-o", str(target), "--reason", "T-2")
    assert told["contact"] == "c-1"
    known = json.loads(target.read_text())
    assert (known["EventType"], known["Attributes"], "NewestBy" in known) == ("COMPLETED", {"name": NAME}, False)
    assert target.stat().st_mode & 0o777 == 0o600
    reasons = [(each["purpose"], each.get("reason"), each["contact"]) for each in opened(records)]
    assert ("ls", "T-1", "c-1") in reasons
    assert ("get", "T-2", "c-1") in reasons
