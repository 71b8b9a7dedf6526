"""Grants as they are kept, and their tokens as they are used: while new, after a restart, and when they are no good."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from pipeline.crypt.grants import (
    OPERATIONS,
    PROPAGATION_S,
    GrantedKeys,
    GrantFolder,
    GrantRecord,
    end_grant,
    make_grant,
    terms,
)
from pipeline.errors import (
    GrantTokenError,
    HoldCode,
    KeyBusyError,
    KeyUnavailableError,
    PipelineError,
    RefuseError,
    StoreIoError,
)
from pipeline.keyports import GeneratedKey, GrantFacts, GrantTerms, KeyDescription, MadeGrant
from tests.unit.keyring_fakes import ARN, OLD_ARN, A, FakeClock, MemoryFiles, StrictKms, context, refusal

DIRECTORY = f"keys/{A.hex}"
GRANTEE = "arn:aws:iam::111122223333:role/pipeline"
TERMS = terms(str(A), "recordings_interim", context(A), GRANTEE)


class GrantingKms(StrictKms):
    """Grants the use of keys; a token it does not know is an error, as are uses of a key without a known grant."""

    def __init__(self) -> None:
        super().__init__()
        self.grants: dict[str, tuple[str, GrantTerms]] = {}
        self.given: list[tuple[str, ...]] = []
        self.knows = False
        """Whether grants are known everywhere: no token is needed."""
        self.fails: PipelineError | None = None

    async def create_grant(self, key_arn: str, terms: GrantTerms) -> MadeGrant:
        await self._call("CreateGrant", key_arn)
        name = next((each for each, (arn, known) in self.grants.items() if (arn, known) == (key_arn, terms)), None)
        grant_id = name or f"grant-{len(self.grants) + 1}"
        self.grants[grant_id] = key_arn, terms
        return MadeGrant(grant_id, f"token of {grant_id}")

    async def list_grants(self, key_arn: str) -> list[GrantFacts]:
        raise NotImplementedError

    async def revoke_grant(self, key_arn: str, grant_id: str) -> None:
        raise NotImplementedError

    async def retire_grant(self, key_arn: str, grant_id: str) -> None:
        await self._call("RetireGrant", key_arn)
        self.grants.pop(grant_id, None)

    def _check(self, arns: Sequence[str], tokens: Sequence[str]) -> None:
        self.given.append(tuple(tokens))
        known = {f"token of {grant_id}": arn for grant_id, (arn, _) in self.grants.items()}
        if not set(tokens) <= set(known):
            raise GrantTokenError("an unknown token")
        by_token = {known[token] for token in tokens}
        everywhere = {arn for arn, _ in self.grants.values()} if self.knows else set()
        for arn in arns:
            if arn not in by_token | everywhere:
                raise KeyUnavailableError(HoldCode.KEY_ACCESS_DENIED, "no grant permits it")

    async def generate_data_key(
        self, key_arn: str, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> GeneratedKey:
        made = await super().generate_data_key(key_arn, context)
        self._check([key_arn], tokens)
        return made

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        opened = await super().decrypt(key_arn, wrapped, context)
        self._check([key_arn], tokens)
        return opened

    async def re_encrypt(
        self, source_arn: str, target_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        again = await super().re_encrypt(source_arn, target_arn, wrapped, context)
        self._check([source_arn, target_arn], tokens)
        return again

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        described = await super().describe(key_arn)
        self._check([key_arn], tokens)
        return described


@dataclass
class Bench:
    kms: GrantingKms = field(default_factory=GrantingKms)
    files: MemoryFiles = field(default_factory=MemoryFiles)
    clock: FakeClock = field(default_factory=FakeClock)

    @property
    def folder(self) -> GrantFolder:
        return GrantFolder(self.files, DIRECTORY)

    def keys(self) -> GrantedKeys:
        """As a process that just started has them."""
        return GrantedKeys(self.kms, self.folder, self.clock)

    async def grant(self, arn: str = ARN) -> GrantRecord:
        return await make_grant(self.kms, self.folder, self.clock, arn, TERMS)


def test_a_grant_has_the_fixed_name_and_exactly_these_operations() -> None:
    assert TERMS.name == f"pipeline:{A}:recordings_interim:v1"
    assert set(OPERATIONS) == {
        "GenerateDataKey", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "DescribeKey", "RetireGrant"
    }  # fmt: skip
    assert (TERMS.operations, TERMS.context, TERMS.grantee) == (OPERATIONS, context(A), GRANTEE)


async def test_a_grant_is_kept_durably_and_read_again() -> None:
    bench = Bench()
    record = await bench.grant()
    assert list(bench.files.durable) == [next(iter(bench.files.contents))]
    steps = [what for what, _ in bench.files.done if what in {"sync", "rename", "sync_directory"}]
    assert steps == ["sync", "rename", "sync_directory"]
    assert bench.folder.read() == {ARN: record}
    assert record.created_at == bench.clock.now()
    assert record.token not in repr(record)
    assert await bench.grant() == record  # the first one again


async def test_the_token_goes_along_for_five_minutes_and_after_a_restart_too() -> None:
    bench = Bench()
    record = await bench.grant()
    made = await bench.keys().generate_data_key(ARN, context(A))
    bench.clock.advance(PROPAGATION_S - 1)
    keys = bench.keys()
    assert await keys.decrypt(ARN, made.wrapped, context(A)) == made.plaintext
    assert (await keys.describe(ARN)).state == "Enabled"
    assert bench.kms.given == [(record.token,)] * 3
    bench.clock.advance(1)
    bench.kms.knows = True
    await keys.decrypt(ARN, made.wrapped, context(A))
    await bench.keys().decrypt(ARN, made.wrapped, context(A))
    assert bench.kms.given[3:] == [(), ()]


async def test_re_encryption_takes_the_tokens_of_both_keys() -> None:
    bench = Bench()
    old, new = await bench.grant(OLD_ARN), await bench.grant(ARN)
    keys = bench.keys()
    made = await keys.generate_data_key(OLD_ARN, context(A))
    again = await keys.re_encrypt(OLD_ARN, ARN, made.wrapped, context(A))
    assert await keys.decrypt(ARN, again, context(A)) == made.plaintext
    assert bench.kms.given == [(old.token,), (old.token, new.token), (new.token,)]


@pytest.mark.parametrize("code", [HoldCode.KEY_ACCESS_DENIED, HoldCode.KEY_NOT_FOUND])
async def test_a_refusal_counts_as_not_yet_for_five_minutes_and_then_as_a_refusal(code: HoldCode) -> None:
    bench = Bench()
    await bench.grant()
    bench.kms.refuses[ARN] = refusal(code)
    keys = bench.keys()
    with pytest.raises(KeyBusyError):
        await keys.generate_data_key(ARN, context(A))
    bench.clock.advance(PROPAGATION_S)
    with pytest.raises(KeyUnavailableError) as caught:
        await keys.generate_data_key(ARN, context(A))
    assert caught.value.code is code


@pytest.mark.parametrize("code", [HoldCode.KEY_DISABLED, HoldCode.KEY_PENDING_DELETION, HoldCode.KEY_MISMATCH])
async def test_what_no_new_grant_explains_is_a_refusal_at_once(code: HoldCode) -> None:
    bench = Bench()
    await bench.grant()
    bench.kms.refuses[ARN] = refusal(code)
    with pytest.raises(KeyUnavailableError):
        await bench.keys().generate_data_key(ARN, context(A))


async def test_without_a_grant_a_refusal_is_one() -> None:
    bench = Bench()
    with pytest.raises(KeyUnavailableError):
        await bench.keys().generate_data_key(ARN, context(A))
    await bench.grant(OLD_ARN)  # of another key
    with pytest.raises(KeyUnavailableError):
        await bench.keys().generate_data_key(ARN, context(A))
    assert bench.kms.given == [(), ()]


async def test_a_token_that_is_no_good_is_dropped_and_asked_once_without() -> None:
    bench = Bench()
    record = await bench.grant()
    keys = bench.keys()
    bench.kms.knows = True
    bench.kms.grants = {"another": (ARN, TERMS)}
    await keys.generate_data_key(ARN, context(A))
    await keys.generate_data_key(ARN, context(A))
    assert bench.kms.given == [(record.token,), (), ()]


async def test_a_grant_that_another_process_made_is_found_when_kms_refuses() -> None:
    bench = Bench()
    keys = bench.keys()
    with pytest.raises(KeyUnavailableError):
        await keys.generate_data_key(ARN, context(A))
    record = await bench.grant()
    await keys.generate_data_key(ARN, context(A))
    await keys.generate_data_key(ARN, context(A))
    assert bench.kms.given == [(), (), (record.token,), (record.token,)]


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
async def test_a_wall_clock_that_jumps_makes_no_grant_new_for_ever(jump_s: float) -> None:
    bench = Bench()
    await bench.grant()
    bench.clock.start += timedelta(seconds=jump_s)
    bench.kms.refuses[ARN] = refusal(HoldCode.KEY_ACCESS_DENIED)
    keys = bench.keys()
    with pytest.raises((KeyBusyError, KeyUnavailableError)):
        await keys.generate_data_key(ARN, context(A))
    bench.clock.advance(PROPAGATION_S)
    with pytest.raises(KeyUnavailableError):
        await keys.generate_data_key(ARN, context(A))


async def test_a_record_that_is_no_record_is_passed_over() -> None:
    bench = Bench()
    record = await bench.grant()
    (path,) = bench.files.contents
    content = bench.files.contents[path]
    bench.files.contents[f"{DIRECTORY}/other.grant"] = content  # under a name that is not its key's
    bench.files.contents[f"{DIRECTORY}/{A.hex}.json"] = b"{}"  # a ring file
    assert bench.folder.read() == {ARN: record}
    for junk in (b"", b"{", b"\xff", content.replace(b'"version": 1', b'"version": 2')):
        bench.files.contents[path] = junk
        assert bench.folder.read() == {}
    bench.kms.knows = True
    await bench.keys().generate_data_key(ARN, context(A))  # KMS decides


async def test_an_ended_grant_is_retired_and_forgotten() -> None:
    bench = Bench()
    record = await bench.grant()
    assert await end_grant(bench.kms, bench.folder, ARN) == record
    assert (bench.kms.grants, bench.folder.read()) == ({}, {})
    assert await end_grant(bench.kms, bench.folder, ARN) is None


async def test_a_grant_that_is_not_retired_is_kept() -> None:
    bench = Bench()
    record = await bench.grant()
    bench.kms.refuses[f"{ARN} RetireGrant"] = KeyBusyError("later")
    with pytest.raises(KeyBusyError):
        await end_grant(bench.kms, bench.folder, ARN)
    assert bench.folder.read() == {ARN: record}


async def test_a_grant_that_is_not_made_or_not_durable_is_not_used() -> None:
    bench = Bench()
    bench.kms.refuses[f"{ARN} CreateGrant"] = RefuseError("as many as it may have")
    with pytest.raises(RefuseError):
        await bench.grant()
    bench.kms.refuses.clear()
    bench.files.fail = "sync"
    with pytest.raises(StoreIoError):
        await bench.grant()
    bench.files.fail = None
    assert bench.folder.read() == {}
    assert (await bench.grant()).grant_id == "grant-1"  # found again by its name
