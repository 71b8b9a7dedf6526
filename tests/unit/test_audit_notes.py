"""Signed notes and checkpoints, against the C2SP specifications' own example, and against what is not signed."""

import pytest

from pipeline.audit.notes import Checkpoint, Signer, Verifier, checkpoint_of, opened, size_said
from pipeline.errors import RefuseError

KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
NOTE = f"{TEXT}\n— PeterNeumann {SIGNATURE}\n"
SIGNER = Signer.make("recording-pipeline/audit/acme")
CHECKPOINT = Checkpoint("recording-pipeline/audit/acme", 7, bytes(range(32)))


def test_the_example_of_the_specification_verifies() -> None:
    assert opened(NOTE, Verifier.parse(KEY)) == TEXT
    assert str(Verifier.parse(KEY)) == KEY


@pytest.mark.parametrize(
    "note",
    [
        NOTE.replace("think", "thunk"),
        NOTE.replace("x08go", "x08gp"),
        NOTE.replace("— Peter", "— Pater"),
        NOTE.replace("— ", "- "),
        NOTE.removesuffix("\n"),
        NOTE.replace(SIGNATURE, "!"),
        TEXT,
        "",
    ],
)
def test_what_is_not_signed_gives_nothing_out(note: str) -> None:
    with pytest.raises(RefuseError):
        opened(note, Verifier.parse(KEY))


def test_signatures_of_others_are_ignored() -> None:
    both = NOTE + SIGNER.note(TEXT).rpartition("\n\n")[2]
    assert opened(both, Verifier.parse(KEY)) == opened(both, SIGNER.verifier) == TEXT


def test_a_checkpoint_comes_back_as_it_was_signed() -> None:
    note = SIGNER.note(CHECKPOINT.text)
    assert checkpoint_of(note, Verifier.parse(str(SIGNER.verifier))) == CHECKPOINT
    assert size_said(note.encode()) == 7
    assert note.split("\n")[:2] == ["recording-pipeline/audit/acme", "7"]


@pytest.mark.parametrize(
    "text",
    [
        CHECKPOINT.text.replace("acme", "borealis"),
        CHECKPOINT.text.replace("\n7\n", "\n07\n"),
        CHECKPOINT.text.replace("\n7\n", "\n-7\n"),
        CHECKPOINT.text.replace("\n7\n", "\n\n"),
        "recording-pipeline/audit/acme\n7\nAAAA\n",
        "recording-pipeline/audit/acme\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_of_the_log_is_refused(text: str) -> None:
    with pytest.raises(RefuseError):
        checkpoint_of(SIGNER.note(text), SIGNER.verifier)


def test_any_key_comes_back_from_its_text_whatever_its_base64_holds() -> None:
    made = [Signer.make("name") for _ in range(50)]
    assert any(each.text.count("+") > 4 for each in made)
    assert [Signer.parse(each.text).verifier for each in made] == [each.verifier for each in made]
    assert [Verifier.parse(str(each.verifier)) for each in made] == [each.verifier for each in made]


def test_a_private_key_comes_back_from_its_text_and_is_not_shown() -> None:
    again = Signer.parse(SIGNER.text)
    assert again.note(TEXT) == SIGNER.note(TEXT)
    secret = SIGNER.text.split("+", 4)[4]
    assert secret not in repr(SIGNER)
    for damaged in ("", SIGNER.text[:-8], SIGNER.text.replace(SIGNER.verifier.key_id, "00000000"), KEY):
        with pytest.raises(RefuseError) as error:
            Signer.parse(damaged)
        assert secret[:8] not in str(error.value)


@pytest.mark.parametrize("text", ["", "name", "name+00000000+AAAA", KEY.replace("c74f20a3", "00000000"), f"a b{KEY}"])
def test_a_verifier_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RefuseError):
        Verifier.parse(text)
