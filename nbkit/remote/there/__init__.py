"""Programs that run on the box: standard library, Python 3.8 on. Sent as text by `remote.program`, not imported here."""
