"""What speaks to disks and services: one module for each technology, each a port's implementation.

In: the ports' calls. Out: system calls and requests; foreign errors become ours here, by a table. An adapter knows no
sibling and never retries; which of them run is chosen where the service is put together.
"""
