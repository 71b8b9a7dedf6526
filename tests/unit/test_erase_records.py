"""The other classes of data of an instance that is erased: keys and rows go, unless another instance has them too."""

from dataclasses import replace
from pathlib import Path

from pipeline.adapters.disk import Disk
from pipeline.erasure.records import RecordsErasure, scopes_of
from pipeline.ids import InstanceId
from pipeline.records.rows import Row, RowChange
from tests.intake_server import world_at
from tests.records_fixture import KEPT, Records, configs, records_over
from tests.store_fixture import node
from tests.unit.keyring_fakes import A, B


async def fill(records: Records, instance_id: InstanceId) -> None:
    """Let each class have a data key and three rows."""
    for data_class in KEPT:
        shelf = records.shelf(data_class, instance_id)
        key = await shelf.active()
        rows = [
            Row(shelf.scope.shelf, bytes([number]) * 16, 1, key.key_id, sealed=instance_id.bytes) for number in range(3)
        ]
        await records.engine.write([RowChange(row.shelf, row.tag, 0, row) for row in rows])


async def rows_of(records: Records, instance_id: InstanceId) -> int:
    shelves = {records.shelf(data_class, instance_id).scope.shelf for data_class in KEPT}
    return sum([len(await records.engine.page(shelf, 0, 1000)) for shelf in shelves])


def key_files(root: Path) -> list[Path]:
    return [path for path in root.glob("keys/*/*/*.json") if not path.parent.parent.name.startswith("recordings")]


async def test_everything_of_an_instances_classes_goes_and_nothing_of_anothers(tmp_path: Path) -> None:
    async with node(world_at(tmp_path)) as process, records_over(process) as records:
        await fill(records, A)
        mine = set(key_files(tmp_path))
        await fill(records, B)
        theirs = set(key_files(tmp_path)) - mine
        before = await rows_of(records, B)
        erasure = RecordsErasure(str(tmp_path), Disk(), records.engine)
        scopes = scopes_of(records.caller(A), [records.caller(B)])
        keys = erasure.keys(scopes)
        both = {records.shelf(each, A).scope.directory for each in KEPT} & {
            records.shelf(each, B).scope.directory for each in KEPT
        }
        assert len(both) == 1  # of the account, which both belong to: its rows are each one's own
        alone = {path.stem for path in mine if str(path.parent.relative_to(tmp_path)) not in both}
        assert {key.key_id.hex for key in keys} == alone
        assert await erasure.count(scopes) == await rows_of(records, A) > 0
        (tmp_path / "records" / "indexes").mkdir()
        copies = [
            tmp_path / "records" / "indexes" / f"{records.shelf('ai_content', each).scope.shelf.hex()}{ending}"
            for each in (A, B)
            for ending in (".index", ".index.tmp")
        ]
        for copy in copies:
            copy.write_bytes(b"sealed")
        assert [each for each in await erasure.left(scopes) if "indexes" in each] == [str(each) for each in copies[:2]]
        erasure.destroy_keys(scopes)
        assert await erasure.remove(scopes) > 0
        assert await erasure.left(scopes) == []
        assert await rows_of(records, A) == 0
        assert [each.exists() for each in copies] == [False, False, True, True]
        assert (await rows_of(records, B), set(key_files(tmp_path)) >= theirs) == (before, True)
        assert await erasure.remove(scopes) == 0  # again


async def test_a_domain_that_another_instance_has_too_stays_and_is_told(tmp_path: Path) -> None:
    async with node(world_at(tmp_path)) as process, records_over(process) as records:
        shared = configs(A)
        records.configure(b=replace(records.caller(B), records=shared))
        await fill(records, A)
        scopes = scopes_of(records.caller(A), [records.caller(B)])
        erasure = RecordsErasure(str(tmp_path), Disk(), records.engine)
        erasure.destroy_keys(scopes)
        await erasure.remove(scopes)
        kept = records.shelf("profiles_domain", A)
        assert any("profiles_domain" in name for name in scopes.shared)
        assert len(await records.engine.page(kept.scope.shelf, 0, 10)) == 3
        assert kept.scope.directory not in {scope.directory for scope in scopes.rings}
        alone = records.shelf("contact_metadata", A)  # of the instance itself
        assert await records.engine.page(alone.scope.shelf, 0, 10) == []
