"""Nothing that is secret or personal is in what the service logs, at any level."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.settings import Credentials, LogSettings
from tests import markers
from tests.e2e.journey import MARKER, contact_event, message, wav
from tests.log_guard import found
from tests.node import Caller, process_node, until
from tests.proxy import Proxy, proxied
from tests.sites import Site, moto_site

NUMBER = markers.CALLER
SECRET = markers.ACCESS_SECRET
NAME = markers.ATTRIBUTE


def data_keys(kms: Proxy) -> set[bytes]:
    """Give every plaintext key that KMS has sent."""
    found = re.findall(rb'"Plaintext": ?"([A-Za-z0-9+/=]{44})"', b"".join(kms.answers))
    return {base64.b64decode(each) for each in found}


@pytest.mark.aws
@pytest.mark.slow
async def test_a_whole_journey_at_debug_tells_no_secret(tmp_path: Path) -> None:
    """Tokens, credentials, data keys, numbers, names and words spoken, in success, refusal and failure."""
    async with moto_site(tmp_path) as site, proxied(site.settings.kms) as kms, proxied(site.settings.s3) as s3:
        ours = Credentials("AKCANARY", SECRET)
        site.settings = replace(
            site.settings, kms=replace(kms.endpoint, credentials=ours), s3=s3.endpoint, log=LogSettings(level="DEBUG")
        )
        async with process_node(site) as running:
            await _be_personal(site, running.caller)
            await until(lambda: len(site.published(site.acme)) == 3)
            s3.closed = True  # failures are told, too
            await running.caller.put(site.acme, NUMBER, "voice/2.wav", wav(3000))
            await until(lambda: b"delivery.deferred" in running.log.read_bytes())
            s3.closed = False
            await until(lambda: len(site.published(site.acme)) == 4)
            assert await running.stop() == 0
            await running.start()  # and what a start has to open
            await _be_personal(site, running.caller)
            assert await running.stop() == 0
        keys = data_keys(kms)
        assert len(keys) >= 1
        said = running.log.read_bytes()
        assert 'level = "DEBUG"' in site.write_settings().read_text()
    assert all(found(key, b"".join(kms.answers)) for key in keys)  # where they are known to be
    assert b"intake.sealed" in said
    secrets = [
        *keys,
        site.acme.token.encode(),
        site.borealis.token.encode(),
        NUMBER.encode(),
        NUMBER.strip("+").encode(),
        NAME.encode(),
        MARKER,
        SECRET.encode(),
    ]
    for secret in secrets:
        assert found(secret, said) == [], secret


async def _be_personal(site: Site, caller: Caller) -> None:
    """Send what holds numbers, names and words, well-formed and not."""
    acme = site.acme
    event = contact_event(acme, NUMBER)
    event["detail"] |= {
        "customerEndpoint": {"Type": "TELEPHONE_NUMBER", "Address": NUMBER},
        "tags": {"aws:connect:systemEndpoint": NUMBER},
        "attributes": {"caller": NAME},
    }
    said = message(acme, "c-chat", "i-1", MARKER.decode(), final=True)
    said["detail"]["item"]["DisplayName"] = NAME
    assert (await caller.post(acme, [event, said])).status == 202
    assert (await caller.put(acme, NUMBER, "voice.wav", wav(3000), X_Recording_Caller=NUMBER)).status == 201
    assert (await caller.put(acme, f"room {NAME}", f"voice/{NUMBER}.wav", wav(3000))).status == 201
    broken = json.loads(json.dumps(said).replace('"AbsoluteTime"', f'"{NAME}"'))
    assert (await caller.post(acme, broken)).status == 400
    assert (await caller.put(acme, NUMBER, "voice.wav", b"RIFF", X_Recording_Start=NUMBER)).status == 400
    assert (await caller.put(replace(acme, token="wrong" + NUMBER), NUMBER, "voice.wav", b"RIFF")).status == 401
    assert (
        await caller.put(replace(acme, instance=site.borealis.instance), NUMBER, "voice.wav", b"RIFF")
    ).status == 404
