"""Encryption of what is held: segments, the artifact file around them, and the data keys of each instance.

In: plaintext, and a data key that KMS gave for one instance. Out: sealed segments, and plaintext again only when it
authenticates. On disk in between: nothing but sealed bytes and wrapped keys.
"""
