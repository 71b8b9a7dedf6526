"""The operations that use a key: data keys, Encrypt, Decrypt, ReEncrypt.

Source: the page of each operation in the AWS KMS API reference.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from pipeline.kms import asks, blob
from pipeline.kms.access import Call, dry_run, find_key, use_key
from pipeline.kms.records import Key, Material
from pipeline.kms.refusal import KmsRefusalError, invalid

ALGORITHM = "SYMMETRIC_DEFAULT"
_SPECS = {"AES_256": 32, "AES_128": 16}


def generate_data_key(call: Call, ask: asks.GenerateDataKey) -> dict[str, Any]:
    """Make a data key; give it in clear and sealed."""
    plaintext, answer = _data_key(call, ask)
    return {**answer, "Plaintext": plaintext}


def generate_data_key_without_plaintext(call: Call, ask: asks.GenerateDataKey) -> dict[str, Any]:
    """Make a data key; give it sealed only."""
    return _data_key(call, ask)[1]


def _data_key(call: Call, ask: asks.GenerateDataKey) -> tuple[bytes, dict[str, Any]]:
    size = _size(ask)
    context = ask.encryption_context or {}
    key = use_key(call, ask.key_id, context=context, tokens=ask.grant_tokens)
    dry_run(ask.dry_run)
    plaintext = secrets.token_bytes(size)
    material = key.current
    call.additional["keyMaterialId"] = material.material_id
    answer = {
        "CiphertextBlob": blob.seal(key.key_id, material, plaintext, context),
        "KeyId": key.arn,
        "KeyMaterialId": material.material_id,
    }
    return plaintext, answer


def _size(ask: asks.GenerateDataKey) -> int:
    if (ask.key_spec is None) == (ask.number_of_bytes is None):
        raise invalid("Please specify either number of bytes or key spec.")
    if ask.number_of_bytes is not None:
        return ask.number_of_bytes
    assert ask.key_spec is not None
    if ask.key_spec not in _SPECS:
        raise invalid("1 validation error detected: the value at $.KeySpec must be AES_256 or AES_128.")
    return _SPECS[ask.key_spec]


def encrypt(call: Call, ask: asks.Encrypt) -> dict[str, Any]:
    """Seal up to 4096 bytes."""
    _check_algorithm(ask.encryption_algorithm)
    context = ask.encryption_context or {}
    key = use_key(call, ask.key_id, context=context, tokens=ask.grant_tokens)
    dry_run(ask.dry_run)
    material = key.current
    call.additional["keyMaterialId"] = material.material_id
    return {
        "CiphertextBlob": blob.seal(key.key_id, material, ask.plaintext, context),
        "KeyId": key.arn,
        "EncryptionAlgorithm": ALGORITHM,
    }


def decrypt(call: Call, ask: asks.Decrypt) -> dict[str, Any]:
    """Open a ciphertext blob."""
    _check_algorithm(ask.encryption_algorithm)
    context = ask.encryption_context or {}
    sealed = _parsed(ask.ciphertext_blob)
    key = use_key(call, _source_key(call, ask.key_id, sealed), context=context, tokens=ask.grant_tokens)
    plaintext, material = _open(key, sealed, context)
    dry_run(ask.dry_run)
    call.additional["keyMaterialId"] = material.material_id
    return {
        "KeyId": key.arn,
        "Plaintext": plaintext,
        "EncryptionAlgorithm": ALGORITHM,
        "KeyMaterialId": material.material_id,
    }


def re_encrypt(call: Call, ask: asks.ReEncrypt) -> dict[str, Any]:
    """Open a ciphertext blob and seal what it holds anew."""
    _check_algorithm(ask.source_encryption_algorithm)
    _check_algorithm(ask.destination_encryption_algorithm)
    context = ask.source_encryption_context or {}
    new_context = ask.destination_encryption_context or {}
    sealed = _parsed(ask.ciphertext_blob)
    named = _source_key(call, ask.source_key_id, sealed)
    source = use_key(call, named, "ReEncryptFrom", context=context, tokens=ask.grant_tokens)
    target = use_key(call, ask.destination_key_id, "ReEncryptTo", context=new_context, tokens=ask.grant_tokens)
    plaintext, old = _open(source, sealed, context)
    dry_run(ask.dry_run)
    new = target.current
    call.additional |= {"sourceKeyMaterialId": old.material_id, "destinationKeyMaterialId": new.material_id}
    return {
        "CiphertextBlob": blob.seal(target.key_id, new, plaintext, new_context),
        "SourceKeyId": source.arn,
        "KeyId": target.arn,
        "SourceEncryptionAlgorithm": ALGORITHM,
        "DestinationEncryptionAlgorithm": ALGORITHM,
        "SourceKeyMaterialId": old.material_id,
        "DestinationKeyMaterialId": new.material_id,
    }


def _parsed(raw: bytes) -> blob.Blob:
    sealed = blob.parse(raw)
    if sealed is None:
        raise _not_ours()
    return sealed


def _source_key(call: Call, named: str | None, sealed: blob.Blob) -> Key:
    """Find the key to open with: the one the caller named, and no other; else the blob's."""
    if named is not None:
        return find_key(call, named)
    key = call.vault.key(sealed.key_id)
    if key is None:
        message = "The ciphertext refers to a key that does not exist, or that you are not allowed to access."
        raise KmsRefusalError("AccessDeniedException", message)
    call.resources.append(key)
    return key


def _open(key: Key, sealed: blob.Blob, context: Mapping[str, str]) -> tuple[bytes, Material]:
    if sealed.key_id != key.key_id:
        message = "The key ID in the request does not identify a key that can perform this operation."
        raise KmsRefusalError("IncorrectKeyException", message)
    material = key.materials.get(sealed.material_id)
    plaintext = None if material is None else blob.unseal(sealed, material, context)
    if material is None or plaintext is None:
        raise _not_ours()
    return plaintext, material


def _not_ours() -> KmsRefusalError:
    message = "The ciphertext is damaged, was not made by this key server, or its encryption context is another."
    return KmsRefusalError("InvalidCiphertextException", message)


def _check_algorithm(algorithm: str | None) -> None:
    if algorithm not in {None, ALGORITHM}:
        raise KmsRefusalError("InvalidKeyUsageException", "The key's only algorithm is SYMMETRIC_DEFAULT.")
