"""SeaweedFS: what its command line may say, and how its answers are read."""

import json
from pathlib import Path

from pipeline.adapters import seaweed
from pipeline.settings import Credentials, Endpoint

DATA, CONFIG = Path("/srv/data"), Path("/srv/s3.json")


def test_it_listens_on_loopback_only_and_tells_nobody_of_itself() -> None:
    argv = seaweed.server_argv(20_000, data=DATA, config=CONFIG)
    addresses = [option.partition("=")[2] for option in argv if option.startswith("-ip")]
    assert addresses == ["127.0.0.1", "127.0.0.1"]
    assert "-master.telemetry=false" in argv
    assert "-s3.autoCreateBucket=false" in argv


def test_its_ports_stay_below_those_of_clients() -> None:
    assert max(seaweed.ports(seaweed.HIGHEST_PORT)) < 32_768
    argv = seaweed.server_argv(20_000, data=DATA, config=CONFIG)
    named = {int(option.partition("=")[2]) for option in argv if ".port=" in option}
    assert named < set(seaweed.ports(20_000))
    assert len(seaweed.ports(20_000)) == 8


def test_its_settings_name_the_key_server_and_who_may_use_the_buckets() -> None:
    kms = Endpoint(region="us-east-1", url="http://127.0.0.1:1", credentials=Credentials("KA", "KS"))
    service = seaweed.Identity(name="service", credentials=Credentials("SA", "SS"), actions=("Read", "Write"))
    written = json.loads(seaweed.config([service], kms))
    provider = written["kms"]["providers"][written["kms"]["default_provider"]]
    assert (provider["endpoint"], provider["access_key"], provider["secret_key"]) == ("http://127.0.0.1:1", "KA", "KS")
    assert written["identities"] == [
        {"name": "service", "credentials": [{"accessKey": "SA", "secretKey": "SS"}], "actions": ["Read", "Write"]}
    ]


def test_the_rule_that_every_put_is_synced_is_found_only_where_it_is() -> None:
    rule = {"locationPrefix": "/buckets/", "fsync": True}
    assert seaweed.rules_sync(json.dumps({"version": 1, "locations": [{"locationPrefix": "/x/"}, rule]}).encode())
    assert seaweed.rules_sync(b"> " + json.dumps({"locations": [rule]}).encode())
    assert not seaweed.rules_sync(json.dumps({"locations": [rule | {"fsync": False}]}).encode())
    assert not seaweed.rules_sync(json.dumps({"locations": [rule | {"locationPrefix": "/x/"}]}).encode())
    assert not seaweed.rules_sync(b'{"version": 1}')
    assert not seaweed.rules_sync(b"error: no filer")
    assert not seaweed.rules_sync(b"")
