"""The interim store: artifacts on their way to delivery.

In: segments, already sealed. Out: the same segments, in order, and moves between states. On disk in between: one
append-only file per artifact, its state in its name; a move is one rename, synced before it counts.
"""
