"""Erasing: an instance by destroying its data keys, a recording by removing what is held of it.

In: a job that a person asked for. Out: nothing that opens, and a signed receipt that says what was cleared, what stays
and where copies may still be. A job that broke off goes on where it was.
"""
