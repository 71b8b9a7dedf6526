"""The policy table: every class of the page, every column, and the same in the README."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.crypt.duty import KEY_LIFE
from pipeline.errors import RefuseError
from pipeline.ids import RECORDINGS_CLASS
from pipeline.records.classes import BASE, FIXED, POLICIES, policy_of
from pipeline.records.policy import Audit, Holder, KeyChange, KeyMode, OnRevoke, ScopeKind
from pipeline.records.shown import markdown
from tests.store_fixture import instance
from tests.unit.keyring_fakes import A

README = Path(__file__).parents[2] / "README.md"
CLASSES = [
    "recordings_interim",
    "recordings_delivered",
    "contact_metadata",
    "appintegrations_data",
    "appintegrations_config",
    "cases",
    "case_events",
    "profiles_domain",
    "profiles_object_type",
    "ai_content",
    "ai_search_index",
    "voiceid",
    "campaigns",
    "forecasts",
]


def test_the_table_has_the_classes_of_the_page_and_no_other() -> None:
    assert list(POLICIES) == CLASSES
    assert all(name == row.data_class for name, row in POLICIES.items())


def test_an_unknown_class_is_refused_and_not_repeated() -> None:
    with pytest.raises(RefuseError) as caught:
        policy_of("profiles_secret")
    assert caught.value.field == "class"
    assert "secret" not in str(caught.value)


def test_the_readme_has_the_table_as_it_is() -> None:
    block = re.search(r"<!-- classes -->\n(.*?)<!-- /classes -->", README.read_text(), re.DOTALL)
    assert block is not None
    assert block[1] == markdown(), "put what `pipeline.records.shown.markdown` gives between the marks"


def test_the_table_is_shown_for_programs() -> None:
    result = CliRunner().invoke(app, ["classes", "show", "--json"])
    (document,) = [json.loads(line) for line in result.stdout.splitlines()]
    rows = {row["dataClass"]: row for row in document["classes"]}
    assert list(rows) == CLASSES
    assert rows["voiceid"] == {
        "dataClass": "voiceid",
        "keyMode": "cmk_required",
        "keyScope": "domain",
        "contextKeys": ["aws:voiceid:domain:arn"],
        "onRevoke": "deny",
        "keyChange": "reencrypt_async",
        "retention": "until_deleted",
        "index": "blind",
    }
    assert rows["profiles_domain"]["keyChange"] == "reencrypt_async, locked_after(data_vault)"
    assert rows["case_events"]["retention"] == "transient(24 h)"


def test_the_table_is_shown_for_people() -> None:
    result = CliRunner().invoke(app, ["classes", "show"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_a_row_agrees_with_itself(name: str) -> None:
    row = POLICIES[name]
    assert Audit.KEY_USE in row.audit
    assert (row.key_mode is KeyMode.OWNED) == (row.key_lookup == (Holder.SERVICE,))
    assert (row.key_mode is KeyMode.OPTIONAL) == (len(row.key_lookup) > 1)
    assert (row.on_revoke in {OnRevoke.NEVER, OnRevoke.DROP}) == (row.key_mode is KeyMode.OWNED)
    assert (row.key_change is KeyChange.SERVICE_ROTATES) == (row.key_mode is KeyMode.OWNED)
    assert (row.grant_operations == FIXED) == (row.key_change is KeyChange.IMMUTABLE)
    assert row.grant_operations in {BASE, FIXED, frozenset()}
    assert (row.grant_constraint == "equals") == bool(row.grant_operations)
    assert (row.data_key_life is None) == (row.key_scope is ScopeKind.S3)
    ours = [key for key in row.context_keys if key.startswith("pipeline:")]
    assert ours in ([], list(row.context_keys))
    assert not ours or (ours[0], ours[-1]) == ("pipeline:accountId", "pipeline:dataClass")


def test_recordings_keep_to_their_row() -> None:
    row = policy_of(RECORDINGS_CLASS)
    assert tuple(instance(A).recordings_context) == row.context_keys
    assert row.data_key_life == KEY_LIFE


def test_a_part_is_named_where_there_are_parts_and_only_there() -> None:
    assert policy_of("cases").part(None) is None
    part = policy_of("voiceid").part("audio")
    assert part is not None
    assert str(part.retention) == "fixed(1 days)"
    for row, wrong in ((policy_of("cases"), "audio"), (policy_of("voiceid"), None), (policy_of("voiceid"), "x")):
        with pytest.raises(RefuseError):
            row.part(wrong)
