"""The audit trail: one record per use of a KMS key and per move of an artifact, in logs that a stranger can check.

In: what is about to count. Out: nothing. On disk: a log of JSON lines for each instance and one for the node, each line
bound to the one before, synced with the group commit *before* the act counts; checkpoints of it, signed, are kept
elsewhere too. Holds no personal data and no key material. Logging is something else.
"""
