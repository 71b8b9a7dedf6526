"""Records through the whole service, over the key server: contexts, revocation, commands, and no plaintext anywhere."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from pipeline.instances import KeyAccess
from pipeline.records.classes import POLICIES
from pipeline.settings import KeySettings
from tests import markers
from tests.kms_server import ACCOUNT, new_key
from tests.records_site import KEPT, RecordSite, record_site, serving

SERVICE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/pipeline"
PAUSE_S = 0.05
MARKER = f"{markers.PERSON}-4930901820"
DATA = {
    "name": MARKER,
    "PhoneNumber": "+4930901820",
    "CustomerEndpoint": {"Address": "+4930901820"},
    "DestinationPhoneNumber": "+4930901820",
    "CustomerSpeakerId": "speaker-4930901820",
}
INDEXES = {
    "contact_metadata": ("number", "+4930901820"),
    "profiles_domain": ("phone", "+4930901820"),
    "profiles_object_type": ("phone", "+4930901820"),
    "campaigns": ("number", "+4930901820"),
    "voiceid": ("speaker", "speaker-4930901820"),
}


def contexts(records: RecordSite) -> dict[str, set[str]]:
    """Which contexts each KMS key was used in, as the key server says."""
    found: dict[str, set[str]] = {}
    for each in records.keys.trail():
        if each["eventName"] == "GenerateDataKey" and "errorCode" not in each:
            parameters = each["requestParameters"]
            found.setdefault(parameters["keyId"], set()).add(json.dumps(parameters["encryptionContext"]))
    return found


async def test_each_class_has_its_own_key_and_context_and_nothing_is_in_clear(tmp_path: Path) -> None:
    async with record_site(tmp_path) as records:
        acme, borealis = records.site.parties
        async with serving(records):
            for data_class in KEPT:
                for party in (acme, borealis):
                    assert (await records.put(party, data_class, MARKER, DATA)).status == 201
                    assert (await records.get(party, data_class, MARKER)).json == DATA
            for data_class, (index, value) in INDEXES.items():
                (found,) = await records.find(acme, data_class, index, value)
                assert found["id"] == MARKER
            foreign = await records.ask("GET", acme, records.path(borealis, "cases", MARKER))
            assert foreign.status == 404
        made = contexts(records)
        for party in (acme, borealis):
            for (data_class, _), place in party.instance.places.items():
                if POLICIES[data_class].kept:
                    arn = records.customers.get((party.instance.alias, data_class), records.service_arn)
                    assert json.dumps(dict(place.scope.context)) in made[arn]
        assert len(made[records.service_arn]) == sum(
            1 if data_class == "appintegrations_config" else 2
            for data_class in KEPT
            if not POLICIES[data_class].takes_customer_key
        )
        for file in records.site.directory.rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert MARKER.encode() not in content, file
                assert b"4930901820" not in content, file


async def test_a_revoked_key_denies_one_class_of_one_instance_until_it_is_back(tmp_path: Path) -> None:
    async with record_site(tmp_path) as records:
        records.site.settings = replace(records.site.settings, keys=KeySettings(cache=timedelta(seconds=1)))
        acme, borealis = records.site.parties
        async with serving(records):
            for data_class in KEPT:
                for party in (acme, borealis):
                    assert (await records.put(party, data_class, "r", DATA)).status == 201
            taken = {data_class for (alias, data_class) in records.customers if alias == "acme"}
            for arn in [arn for (alias, _), arn in records.customers.items() if alias == "acme"]:
                records.keys.disable(arn.rpartition("/")[2])
            for data_class in KEPT:
                answer = await records.get(acme, data_class, "r")
                while data_class in taken and answer.status == 200:  # for as long as a key in memory may be used
                    await anyio.sleep(PAUSE_S)
                    answer = await records.get(acme, data_class, "r")
                if data_class in taken:
                    assert (answer.status, answer.json["reason"]) == (403, "AccessDeniedException")
                    assert answer.json["code"] == "KEY_DISABLED"
                else:
                    assert answer.json == DATA
                assert (await records.get(borealis, data_class, "r")).json == DATA
            for arn in records.customers.values():
                records.keys.enable(arn.rpartition("/")[2])
            for data_class in KEPT:
                answer = await records.get(acme, data_class, "r")
                while answer.status == 403:  # KMS is asked again after a pause
                    await anyio.sleep(PAUSE_S)
                    answer = await records.get(acme, data_class, "r")
                assert answer.json == DATA


@pytest.mark.parametrize("page", [100, pytest.param(1000, marks=pytest.mark.slow)])
async def test_the_commands_put_find_import_and_delete(
    page: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page holds a thousand; less of it is as good, and `PAGE` itself is tried when there is time for it."""
    monkeypatch.setattr("pipeline.intake.records.PAGE", page)
    monkeypatch.setattr("pipeline.commands.records._SHOWN", page)
    many = page + 100
    lines = [json.dumps({"id": f"p-{number}", "data": {**DATA, "n": number}}) for number in range(many)]
    (tmp_path / "profiles.jsonl").write_text("\n".join(lines))
    (tmp_path / "one.json").write_text(json.dumps(DATA))
    async with record_site(tmp_path) as records:
        acme = records.site.acme
        named = ("--instance", str(acme.instance.instance_id), "--json")
        async with serving(records):
            done = await records.cli(
                acme, "records", "import", "profiles_domain", str(tmp_path / "profiles.jsonl"), *named
            )
            assert json.loads(done.stdout) == {"taken": many, "new": many}, done.output
            done = await records.cli(acme, "records", "put", "cases", "c-1", str(tmp_path / "one.json"), *named)
            assert json.loads(done.stdout) == {"version": 1}
            done = await records.cli(
                acme, "records", "put", "cases", "c-1", "-", "--if-version", "0", *named, given=b"{}"
            )
            assert done.exit_code == 3, done.output
            done = await records.cli(acme, "records", "get", "cases", "c-1", "-o", str(tmp_path / "got"), *named)
            assert json.loads(done.stdout)["version"] == 1
            assert json.loads((tmp_path / "got").read_text()) == DATA
            assert (tmp_path / "got").stat().st_mode & 0o777 == 0o600
            done = await records.cli(acme, "records", "ls", "profiles_domain", *named)
            assert len(done.stdout.splitlines()) == many
            shown = await records.cli(acme, "records", "ls", "profiles_domain", *named[:2])
            assert "there are more" in shown.output
            done = await records.cli(
                acme, "records", "search", "profiles_domain", "phone", *named, given=b"+49 30 901820\n"
            )
            assert len(done.stdout.splitlines()) == page
            done = await records.cli(acme, "records", "delete", "cases", "c-1", *named)
            assert json.loads(done.stdout) == {"deleted": True}
            for verb in (("delete", "cases", "c-1"), ("get", "cases", "c-1", "-o", str(tmp_path / "x"))):
                assert (await records.cli(acme, "records", *verb, *named)).exit_code == 3
            who = b"number=+49 30 901820\n\nspeaker=speaker-4930901820\n"
            out = str(tmp_path / "person.json")
            done = await records.cli(acme, "subject", "export", "-o", out, *named, given=who)
            assert json.loads(done.stdout)["records"] == many
            done = await records.cli(acme, "subject", "opt-out", *named, given=b"speaker-9")
            assert json.loads(done.stdout)["what"] == "opt-out"
            config = ("--config", str(records.site.write_settings()))
            held = await records.cli(acme, "legal-hold", "add", "acme", "--reason", "court", *config, "--json")
            done = await records.cli(acme, "subject", "erase", *named, given=who)
            assert done.exit_code == 3, done.output
            (released,) = json.loads(held.stdout).values()
            await records.cli(acme, "legal-hold", "release", released["holdId"], "--reason", "over", *config)
            done = await records.cli(acme, "subject", "erase", *named, given=who)
            assert len(json.loads(done.stdout)["removed"][0]["records"]) == many, done.output
            for wrong in (b"", b"nonsense"):
                assert (await records.cli(acme, "subject", "erase", *named, given=wrong)).exit_code == 3
            bad = "\n".join([lines[0], "{"]).encode()
            done = await records.cli(acme, "records", "import", "profiles_domain", "-", *named, given=bad)
            assert done.exit_code == 3
            assert "[1]" in done.output


@pytest.mark.slow
async def test_a_change_of_key_by_command_frees_the_old_key_and_uses_a_grant_on_the_new(tmp_path: Path) -> None:
    async with record_site(tmp_path) as records, records.keys.client("admin") as admin:
        acme = records.site.acme
        records.site.reconfigure(replace(acme.instance, key_access=KeyAccess.GRANT))
        acme = records.site.acme
        records.site.settings = replace(records.site.settings, principal_arn=SERVICE_ROLE)
        config = str(records.site.write_settings())
        old, new = records.customers["acme", "voiceid"], await new_key(admin)
        async with serving(records):
            for number in range(30):
                assert (await records.put(acme, "voiceid", f"s-{number}", DATA)).status == 201
            (grant,) = (await admin.list_grants(KeyId=old))["Grants"]
            context = acme.instance.places["voiceid", "default"].scope.context
            assert set(grant["Operations"]) == set(POLICIES["voiceid"].grant_operations)
            assert grant["Constraints"] == {"EncryptionContextEquals": context}
            refused = await records.cli(acme, "records", "change-key", "acme", "ai_content", new, "--config", config)
            assert refused.exit_code == 3
            assert "never changes" in refused.output
            records.keys.disable(new.rpartition("/")[2])
            refused = await records.cli(acme, "records", "change-key", "acme", "voiceid", new, "--config", config)
            assert refused.exit_code == 3, refused.output
            records.keys.enable(new.rpartition("/")[2])
        done = await records.cli(acme, "records", "change-key", "acme", "voiceid", new, "--config", config, "--json")
        answer = json.loads(done.stdout)
        assert (answer["UpdateStatus"], answer["Done"], answer["Total"]) == ("COMPLETED", 31, 31), done.output
        assert answer["OldKmsKeyId"] == old
        assert (await admin.list_grants(KeyId=old))["Grants"] == []
        records.keys.disable(old.rpartition("/")[2])
        async with serving(records):
            for number in range(30):
                assert (await records.get(acme, "voiceid", f"s-{number}")).json == DATA
        swept = await records.cli(acme, "records", "sweep", "acme", "--dry-run", "--config", config, "--json")
        assert json.loads(swept.stdout) == {"removed": {}, "held": {}, "unknown": 0, "dry": True}, swept.output
        again = await records.cli(acme, "records", "change-key", "acme", "voiceid", new, "--config", config, "--json")
        assert json.loads(again.stdout)["UpdateStatus"] == "COMPLETED"
