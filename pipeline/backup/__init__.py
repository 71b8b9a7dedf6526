"""Backups: the store with its key ring, sealed as it lies, and its configuration if that is wanted.

In: a state directory, which may be served meanwhile. Out: a folder of the same files, and a manifest that is written
last. No key is asked for and nothing is opened.
"""
