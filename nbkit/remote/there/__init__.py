"""Programs that run on the box: standard library, Python 3.8 on. Sent as text by `remote.program`.

Most are not imported here. `frames`, `tree`, `send`, `place` and `receive` are: a transfer runs the same code at both ends.
"""
