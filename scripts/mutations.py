"""Safety lines, each with what the code would be without it and the tests that must notice."""

from dataclasses import dataclass

COMMIT = "pipeline/interim/commit.py"
LOGS = "pipeline/interim/logs.py"
S3 = "pipeline/adapters/s3.py"
UPLOAD = "pipeline/delivery/upload.py"
PROOF = "pipeline/delivery/proof.py"
APPENDER = "pipeline/audit/appender.py"
BEGUN = """            self._files.sync_directory(directory)
        except BaseException:
            self._files.close(handle)
"""
GRANTS = "pipeline/crypt/grants.py"
REWRAP = "pipeline/crypt/rewrap.py"
RESEAL = "pipeline/interim/reseal.py"
STORE = "pipeline/interim/store.py"
SERVICE_ENDS = "with anyio.CancelScope(shield=True):\n            await self.done.wait()"

DISK_TESTS = ("tests/unit/test_commit.py", "tests/unit/test_writer.py", "tests/fault/test_f01_f06_crash_states.py")
BUCKET_TESTS = ("tests/unit/test_proof.py", "tests/unit/test_upload.py", "tests/fault/test_upload_answers.py")
WIRE_TESTS = ("tests/fault/test_upload_wire.py",)
AUDIT_TESTS = ("tests/unit/test_audit_appender.py",)
VERIFY_TESTS = ("tests/unit/test_audit_verify.py", "tests/unit/test_audit_notes.py")
GRANT_TESTS = ("tests/unit/test_grants.py",)
CANCEL_TESTS = ("tests/fault/test_upload_cancelled.py",)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One line that is not there any more: `before` stands in `file` exactly once."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "skip the file sync",
        COMMIT,
        "self._shared(group, lambda commit: commit.handles, self._files.sync)",
        "self._shared(group, lambda commit: commit.handles, lambda _handle: None)",
        DISK_TESTS,
    ),
    Mutation(
        "skip the directory sync of new files",
        COMMIT,
        "self._shared(group, lambda commit: commit.directories, self._files.sync_directory)",
        "self._shared(group, lambda commit: commit.directories, lambda _directory: None)",
        DISK_TESTS,
    ),
    Mutation(
        "skip the directory sync of moves",
        COMMIT,
        "self._shared(group, _changed_directories, self._files.sync_directory)",
        "self._shared(group, _changed_directories, lambda _directory: None)",
        DISK_TESTS,
    ),
    Mutation(
        "skip the sync of a receipt",
        COMMIT,
        "self._attempt(concerned, partial(self._files.sync, handle))",
        "self._attempt(concerned, lambda: None)",
        DISK_TESTS,
    ),
    Mutation(
        "skip the sync of records and events",
        LOGS,
        "self._files.sync(handle)\n        except PipelineError:",
        "pass\n        except PipelineError:",
        (*DISK_TESTS, "tests/unit/test_append_logs.py"),
    ),
    Mutation(
        "acknowledge early",
        COMMIT,
        SERVICE_ENDS,
        SERVICE_ENDS.replace("self.done.wait()", "anyio.sleep(0)"),
        DISK_TESTS,
    ),
    Mutation(
        "let a commit be cancelled",
        COMMIT,
        SERVICE_ENDS,
        SERVICE_ENDS.replace("shield=True", "shield=False"),
        DISK_TESTS,
    ),
    Mutation(
        "unlink before the receipt",
        COMMIT,
        "        self._flush(group)\n        # A handle",
        "        self._unlink([path for pending in _alive(group) for path in pending.commit.unlinks])\n"
        "        self._flush(group)\n        # A handle",
        DISK_TESTS,
    ),
    Mutation(
        "move before the records of it",
        COMMIT,
        "        self._append_lines(_alive(group))\n"
        "        for pending in _alive(group):\n"
        "            self._attempt([pending], partial(self._rename, pending.commit))\n",
        "        for pending in _alive(group):\n"
        "            self._attempt([pending], partial(self._rename, pending.commit))\n"
        "        self._append_lines(_alive(group))\n",
        DISK_TESTS,
    ),
    Mutation(
        "drop If-None-Match of a put",
        S3,
        'return await self._put(request, body, IfNoneMatch="*")',
        "return await self._put(request, body)",
        WIRE_TESTS,
    ),
    Mutation(
        "drop If-None-Match of a multipart upload",
        S3,
        'return await self._complete(request, upload_id, parts, IfNoneMatch="*")',
        "return await self._complete(request, upload_id, parts)",
        WIRE_TESTS,
    ),
    Mutation(
        "take a wrapped key for proven",
        REWRAP,
        "name_key = ringfile.open_name_key(key, file)",
        'name_key = b""',
        ("tests/unit/test_rewrap.py",),
    ),
    Mutation(
        "let go of the old wrapped key without a new one",
        REWRAP,
        "if own is None or len(file.wrapped) == 1:",
        "own = own or file.wrapped[0]\n        if len(file.wrapped) == 1:",
        ("tests/unit/test_rewrap.py",),
    ),
    Mutation(
        "take a copy under another data key for proven",
        RESEAL,
        "if after.digest() != wanted:",
        "if False:",
        ("tests/unit/test_reseal.py",),
    ),
    Mutation(
        "let the old file go before the copy's name is durable",
        STORE,
        "await self._commits.commit(Commit(lines=tuple(tell(target)), renames=((aside, place),)))",
        "self._files.rename(aside, place)",
        ("tests/fault/test_rekey_crashes.py",),
    ),
    Mutation(
        "destroy a data key that something needs",
        "pipeline/rekey.py",
        "if use is not None and use.is_needed:",
        "if False:",
        ("tests/unit/test_reseal.py",),
    ),
    Mutation(
        "try how a bucket is encrypted anew on a recording",
        "pipeline/delivery/reencrypt.py",
        "if not same or not is_under(after, storage):",
        "if False:",
        ("tests/contract/test_rewritable.py",),
    ),
    Mutation(
        "drop If-Match of what replaces an object",
        S3,
        "await self._put(request, body, IfMatch=over)",
        "await self._put(request, body)",
        ("tests/contract/test_rewritable.py",),
    ),
    Mutation(
        "trust a 412",
        UPLOAD,
        "            return await self._examine(request)\n        return await self._prove(request, written)",
        "            written = ObjectFacts(\n"
        "                request.key, request.size_bytes, None, None, request.crc64nvme, None, 'aws:kms',\n"
        "                self.plan.storage.kms_key_arn, True, {}\n"
        "            )\n"
        "        return await self._prove(request, written)",
        BUCKET_TESTS,
    ),
    Mutation(
        "ignore an <Error> in a 200",
        S3,
        "        with _edge():\n            answer = await self._client.complete_multipart_upload(\n",
        "        async def deaf(**given: Any) -> Any:\n"
        "            try:\n"
        "                return await self._client.complete_multipart_upload(**given)\n"
        "            except ClientError as error:\n"
        "                return error.response\n\n"
        "        with _edge():\n            answer = await deaf(\n",
        WIRE_TESTS,
    ),
    Mutation(
        "take an answer without a checksum",
        PROOF,
        '"checksum": facts.crc64nvme == request.crc64nvme,',
        '"checksum": facts.crc64nvme in {None, request.crc64nvme},',
        BUCKET_TESTS,
    ),
    Mutation(
        "take an object under another KMS key",
        PROOF,
        '"KMS key": facts.kms_key_arn == storage.kms_key_arn,',
        '"KMS key": True,',
        BUCKET_TESTS,
    ),
    Mutation(
        "send bytes that are not the manifest's",
        UPLOAD,
        "if checksum_text(crc) != self.plan.crc64nvme:",
        "if False:",
        BUCKET_TESTS,
    ),
    Mutation(
        "swallow a cancellation",
        S3,
        "    except (ClientError, *_SILENCE) as error:",
        "    except BaseException as error:",
        WIRE_TESTS,
    ),
    Mutation(
        "leave the abort of an upload open to cancellation",
        UPLOAD,
        "with anyio.move_on_after(ABORT_S, shield=True), contextlib",
        "with anyio.move_on_after(ABORT_S), contextlib",
        CANCEL_TESTS,
    ),
    Mutation(
        "skip the sync of audit records",
        APPENDER,
        "        try:\n            self._files.sync(known.handle)",
        "        try:\n            pass",
        AUDIT_TESTS,
    ),
    Mutation(
        "skip the directory sync of an audit log's file",
        APPENDER,
        BEGUN,
        BEGUN.replace("self._files.sync_directory(directory)", "pass"),
        AUDIT_TESTS,
    ),
    Mutation(
        "mend an audit log that no power cut explains",
        APPENDER,
        'if b"\\0" not in line:',
        "if not line:",
        AUDIT_TESTS,
    ),
    Mutation(
        "go on behind a cut audit log",
        APPENDER,
        "            _check_size(scan.count, least)\n",
        "",
        AUDIT_TESTS,
    ),
    Mutation(
        "open plaintext that can't be told of",
        "pipeline/delivery/deliverer.py",
        "if not self._store.audit_stands(name.instance_id):",
        "if not name.instance_id:",
        ("tests/fault/test_audit_sink.py",),
    ),
    Mutation(
        "believe hashes that no signature covers",
        "pipeline/audit/examine.py",
        "sizes = [each.size for each in checkpoints if roots.get(each.size) == each.root]",
        "sizes = [len(leaves), *roots][:1]",
        VERIFY_TESTS,
    ),
    Mutation(
        "believe a note that is not signed",
        "pipeline/audit/notes.py",
        "if verifier.is_signed(text.encode(), raw[4:]):",
        "if raw:",
        VERIFY_TESTS,
    ),
    Mutation(
        "take a lasting refusal for a grant that is new",
        GRANTS,
        "left_s = min(PROPAGATION_S, PROPAGATION_S - (now - record.created_at).total_seconds())",
        "left_s = PROPAGATION_S",
        GRANT_TESTS,
    ),
    Mutation(
        "go on giving a token that KMS does not know",
        GRANTS,
        "            self._refused.update(tokens)\n",
        "",
        GRANT_TESTS,
    ),
    Mutation(
        "forget a grant that was not retired",
        GRANTS,
        "    await service.retire_grant(key_arn, record.grant_id)\n",
        "",
        GRANT_TESTS,
    ),
    Mutation(
        "hold a key for one call without an answer",
        "pipeline/delivery/keywatch.py",
        "                await self._probe(tenant, watched)  # nobody may have asked since\n",
        "",
        ("tests/fault/test_kms_errors.py",),
    ),
    Mutation(
        "destroy a retired data key that something needs",
        "pipeline/retiredkeys.py",
        "return use is not None and (use.is_needed or use.artifacts > 0)",
        "return False",
        ("tests/fault/test_retired_keys.py",),
    ),
    Mutation(
        "let a policy bind to no encryption context",
        "pipeline/policies.py",
        'return {f"kms:EncryptionContext:{name}": value for name, value in context.items()}',
        "return {}",
        ("tests/contract/test_policies.py",),
    ),
)
