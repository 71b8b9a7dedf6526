"""One test for each cell of `ai_search_index`, the index of a customer's AI content, against the key server."""

import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.crypt.ringdirectory import RingDirectory
from pipeline.errors import HoldCode, KeyUnavailableError, RecordsDeniedError, RefuseError
from pipeline.ids import InstanceId
from pipeline.records.drafts import Draft
from pipeline.records.shelves import ServiceKey, Shelf
from tests.contract.test_record_cells import Cell, cell, server
from tests.kms_server import RunningKeyServer
from tests.records_fixture import ACCOUNT, arn_of
from tests.unit.keyring_fakes import A, B

__all__ = ["server"]
CONTENT, INDEX = "ai_content", "ai_search_index"
WORD, OTHER = "vouchers", "parcels"
DAY_S = 86_400


def index_of(made: Cell, instance: InstanceId = A) -> Shelf:
    return made.records.shelves.of(instance)[INDEX, "default"]


async def put(made: Cell, record_id: str = "k-1", word: str = WORD, instance: InstanceId = A) -> None:
    draft = Draft(id=record_id, body=json.dumps({"text": f"We refund {word}"}).encode())
    await made.records.store.put(made.records.caller(instance), made.records.shelf(CONTENT, instance), draft)


async def found(made: Cell, word: str = WORD, instance: InstanceId = A) -> list[str]:
    caller, shelf = made.records.caller(instance), made.records.shelf(CONTENT, instance)
    return [each.id for each in await made.records.search.search(caller, shelf, word, 9)]


async def copies(made: Cell) -> list[Path]:
    """Have what changed written, and give the sealed copies."""
    made.records.process.world.clock.advance(61)
    await made.records.search.tend()
    return sorted(Path(made.records.search.root).iterdir()) if Path(made.records.search.root).exists() else []


def wrapped(made: Cell, shelf: Shelf) -> list[dict[str, Any]]:
    folder = made.records.process.world.root / shelf.scope.directory
    return [each for file in folder.glob("*.json") for each in json.loads(file.read_bytes())["wrapped"]]


async def filled(made: Cell) -> Path:
    await put(made)
    assert await found(made) == ["k-1"]
    (copy,) = await copies(made)
    return copy


async def ownership(made: Cell) -> None:
    """Seal the index under the service's key, always: also where the content has a customer's."""
    await filled(made)
    assert {each["kmsKeyArn"] for each in wrapped(made, index_of(made))} == {made.keys[0]}
    assert {each["kmsKeyArn"] for each in wrapped(made, made.records.shelf(CONTENT, A))} == {made.keys[1]}
    with pytest.raises(RefuseError, match="name that class"):
        made.configure(lambda known: replace(known, data_class=INDEX), of=CONTENT)


async def scope(made: Cell) -> None:
    """Have one for each assistant, with a data key of its own, and find nothing of another's."""
    await filled(made)
    await put(made, "k-9", OTHER, B)
    assert await found(made, OTHER, B) == ["k-9"]
    assert await found(made, WORD, B) == await found(made, OTHER, A) == []
    assert len(await copies(made)) == 2
    assert index_of(made).scope.name == arn_of(CONTENT, A)
    one, two = ({each["blob"] for each in wrapped(made, index_of(made, each))} for each in (A, B))
    assert one
    assert two
    assert one.isdisjoint(two)


async def context(made: Cell) -> None:
    await filled(made)
    wanted = {
        "pipeline:accountId": ACCOUNT,
        "pipeline:resource": arn_of(CONTENT, A),
        "pipeline:dataClass": INDEX,
    }
    assert wanted in [dict(call.context) for call in made.heard if call.name == "GenerateDataKey"]
    process = made.records.process
    folder = RingDirectory(process.volume.files, f"{process.world.root}/{index_of(made).scope.directory}")
    blob = base64.b64decode(json.loads(next(iter(folder.read().values())))["wrapped"][0]["blob"])
    for name in wanted:
        with pytest.raises(KeyUnavailableError) as caught:
            await process.world.kms.decrypt(made.keys[0], blob, {**wanted, name: CONTENT})
        assert caught.value.code is HoldCode.KEY_MISMATCH


async def grants(made: Cell) -> None:
    await filled(made)
    policy = index_of(made).scope.policy
    assert (set(policy.grant_operations), policy.grant_constraint) == (set(), "none")
    assert (await made.admin.list_grants(KeyId=made.keys[0]))["Grants"] == []


async def retention(made: Cell) -> None:
    """Keep it for as long as the content it is of: not by time, and not a word longer."""
    copy = await filled(made)
    made.records.process.world.clock.advance(3000 * DAY_S)
    await made.records.sweeper.sweep()
    assert await found(made) == ["k-1"]
    await made.records.store.delete(made.records.caller(A), made.records.shelf(CONTENT, A), "k-1")
    before = copy.read_bytes()
    assert await found(made) == []
    assert copy not in await copies(made) or copy.read_bytes() != before


async def index(made: Cell) -> None:
    """Find by words alone, and have no word readable."""
    await filled(made)
    for name in ("number", "phone", "text"):
        with pytest.raises(RefuseError):
            await made.records.store.find(made.records.caller(A), made.records.shelf(CONTENT, A), name, WORD)
    files = [file for file in made.records.process.world.root.rglob("*") if file.is_file()]
    assert not any(WORD.encode() in file.read_bytes() for file in files)


async def revocation(made: Cell) -> None:
    """Drop it with the content's key, which it does not hang on; build it anew when that is back."""
    await filled(made)
    await put(made, "k-9", OTHER, B)
    assert await found(made, OTHER, B) == ["k-9"]
    assert len(await copies(made)) == 2
    await made.disable(made.keys[1])
    with pytest.raises(RecordsDeniedError) as caught:
        await found(made)
    assert caught.value.code is HoldCode.KEY_DISABLED
    (left,) = await copies(made)
    assert left.stem == made.records.shelf(CONTENT, B).scope.shelf.hex()
    assert await found(made, OTHER, B) == ["k-9"]
    await index_of(made).active()  # its own key was not touched
    await made.enable(made.keys[1])
    assert await found(made) == ["k-1"]
    assert len(await copies(made)) == 2


async def key_change(made: Cell) -> None:
    """Follow the service's own key: the copy opens under the new one, or is built anew."""
    await filled(made)
    made.records.service = ServiceKey(made.keys[2], made.keys[0])
    made.records.configure()
    assert await found(made) == ["k-1"]
    await put(made, "k-2", OTHER)
    assert await found(made, OTHER) == ["k-2"]
    assert await copies(made)


async def audit(made: Cell) -> None:
    """Tell of each query, without its words."""
    await filled(made)
    assert await found(made, "absent") == []
    files = (made.records.process.world.root / "audit" / str(A)).glob("*.jsonl")
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    told = [json.loads(line)["requestParameters"] for line in lines if b"IndexQueried" in line]
    assert [(each["dataClass"], each["found"]) for each in told] == [(INDEX, 1), (INDEX, 0)]
    assert not any(word in line for line in lines for word in (WORD.encode(), b"absent"))


COLUMNS: dict[str, Callable[[Cell], Awaitable[None]]] = {
    each.__name__: each for each in (ownership, scope, context, grants, retention, index, revocation, key_change, audit)
}


@pytest.mark.parametrize("column", COLUMNS)
async def test_the_index_is_as_its_cell_says(column: str, server: RunningKeyServer, tmp_path: Path) -> None:
    async with cell(CONTENT, server, tmp_path) as made:
        await COLUMNS[column](made)
