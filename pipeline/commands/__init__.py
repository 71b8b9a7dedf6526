"""What a person or a script asks for: one module for each command; parse, call, print.

In: the command line and the settings. Out: tables or JSON on standard output, everything else on standard error, an
exit code. What is heavy to import is imported by the command that runs.
"""
