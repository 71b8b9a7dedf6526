"""Sealed artifacts come in; proven objects in the instance's bucket go out.

In: sealed artifacts, oldest first. Out: one object each, and a receipt that only proof can make. On disk in between:
the receipt, which is durable before the artifact's media goes.
"""
