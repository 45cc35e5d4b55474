"""One way to fail: what happened, what to do next, and an exit code.

The same object prints in a terminal, renders in a notebook (no traceback unless NBKIT_DEBUG=1) and dumps under `--json`.
"""

from __future__ import annotations

import os
from typing import Any


class NbkitError(Exception):
    """A failure that a person can act on.

    Args:
        message: What happened, with the values; may name a file and line.
        hint: What to do next, as a command to paste where there is one.
        exit_code: 1 failed, 2 usage, 3 unreachable, 4 authentication or host key, 5 a blocker found by the doctor.

    Attributes:
        hop: Where a connection through several hops failed, counted from 0; None where that is no question.
    """

    exit_code = 1
    hop: int | None = None

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        """The text a person reads: the message, then the fix."""
        return self.message + (f"\n  Fix:  {self.hint}" if self.hint else "")

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints on failure."""
        return {"error": type(self).__name__, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}

    def _render_traceback_(self) -> list[str]:
        """Shown by IPython in place of a traceback: the traceback would only show our insides."""
        if debugging():
            import traceback

            return traceback.format_exception(type(self), self, self.__traceback__)
        return [f"Error: {self}", "  (traceback: set NBKIT_DEBUG=1)"]


class DataError(NbkitError):
    """Rows that cannot be used as they stand; names the file and the line."""


class ModelError(NbkitError):
    """A model that cannot be found, read or prepared."""


class RunError(NbkitError):
    """A run that cannot be started, found, resumed or finished."""


class StorageError(NbkitError):
    """A file that cannot be written: disk full, no permission, read-only."""


class HostNameError(NbkitError):
    """A host given in a form that no shell, ssh or socket may see."""

    exit_code = 2


class UnknownReferenceError(NbkitError):
    """A reference to a model or data, such as `hf://org/model`, in a form that names nothing."""

    exit_code = 2


class SshConfigError(NbkitError):
    """An ssh configuration that cannot be read or carried out; names the file and the line where there is one."""


class UnreachableError(NbkitError):
    """A host that cannot be reached: no such name, refused, timed out, the link lost.

    Attributes:
        unanswered: True where nothing answered at all: no name, no machine, no port.
    """

    exit_code = 3
    unanswered = False


class AuthenticationError(NbkitError):
    """A host that answered, proved who it is, and does not let us in."""

    exit_code = 4


class HostKeyError(NbkitError):
    """A host whose key is unknown, changed or revoked, or cannot be judged. Never accepted for you."""

    exit_code = 4


class RemoteCommandError(NbkitError):
    """A command on a host that could not be run, or did not end in time."""


class TransferError(NbkitError):
    """Files that did not get where they were to go; what stood there before is untouched."""


class MissingPackageError(NbkitError):
    """An optional package is absent; the hint installs the extra that holds it."""


def debugging() -> bool:
    """True when the user asked for tracebacks (NBKIT_DEBUG=1)."""
    return os.environ.get("NBKIT_DEBUG", "") not in {"", "0"}


def require(*modules: str, extra: str) -> None:
    """Say which extra to install when one of `modules` is absent, instead of a ModuleNotFoundError from deep inside.

    Raises: MissingPackageError.
    """
    import importlib.util

    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingPackageError(
            f"{', '.join(absent)} is not installed; this needs nbkit's {extra!r} extra.",
            hint=f'pip install "nbkit-llm[{extra}]"      (in a clone: make setup)',
        )
