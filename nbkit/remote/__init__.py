"""Knows boxes: what runs on a GPU box, how to set it up, and how things get there and back. Sends programs, installs none.

The programs of `there/` go over stdin to the box's own Python (3.8 or newer, standard library only).
`connect(host)` opens a Box; what works on one takes it.
"""

from nbkit.remote.box import Box, connect, doctor
from nbkit.remote.jobs import Job, start
from nbkit.remote.practice import Practice, practice
from nbkit.remote.trace import Examination, Step, Trace
from nbkit.remote.transfer import Progress, Transferred, pull, push, sync

__all__ = [
    "Box",
    "Examination",
    "Job",
    "Practice",
    "Progress",
    "Step",
    "Trace",
    "Transferred",
    "connect",
    "doctor",
    "practice",
    "pull",
    "push",
    "start",
    "sync",
]
