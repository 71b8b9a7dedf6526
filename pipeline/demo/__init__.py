"""The main job shown, and checked, on one machine: `scripts/demo`.

In: `fixtures/`, sent as recorders and contact centres would send it. Out: every object in its bucket compared with what
was sent, and everything on disk searched for plaintext. On disk: the state directory of a real service, run as a child.
"""
