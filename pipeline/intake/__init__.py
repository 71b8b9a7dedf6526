"""Media and events come in; sealed segments go out.

In: bodies and events of outside callers, each caller one instance. Out: artifacts, open or sealed, and the journal of
events. On disk in between: nothing but segments; a body is never spooled in clear.
"""
