"""Receipts as the store asks for them. For tests only."""

import msgspec

from pipeline.interim.states import ArtifactName


def receipt_of(name: ArtifactName, **changes: object) -> bytes:
    """Give one of that artifact, with other facts if told to."""
    facts = {
        "recordingId": str(name.artifact_id),
        "artifactId": str(name.artifact_id),
        "generation": name.generation,
        "sizeBytes": name.size_bytes,
        "sha256": "0" * 64,
    }
    return msgspec.json.encode(facts | changes)
