"""The relay: what keeps byte streams whole over a link that breaks. Standard library, Python 3.8 on.

`start` and `relay` run on the box, sent as text by `nbkit.ssh.streams`; `mux` and `spool` run at both ends, so the two
share one wire format. docs/relay.md describes it.
"""
