"""The other personal data of a contact centre: cases, profiles, voiceprints, forecasts, each held under its policy.

In: records by HTTP, and events. Out: the same, to whoever may open them, and nothing by itself. On disk: ciphertext and
keyed hashes; what differs between the classes stands in `policy.py` and nowhere else.
"""
