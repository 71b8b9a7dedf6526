"""The audit trail: one record per use of a KMS key and per move of an artifact.

In: what is about to count. Out: nothing. On disk: one log of JSON lines per instance and UTC day, synced with the
group commit *before* the act counts. Holds no personal data and no key material. Logging is something else.
"""
