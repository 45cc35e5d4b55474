"""OpenSSH's tokens: `%h` and its like, `~`, `${NAME}`; what is not known is refused, never passed on."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from nbkit.errors import SshConfigError

_TOKEN = re.compile(r"%(.?)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([^}]*)\}?")


def home() -> str:
    """This user's home as OpenSSH sees it: the password database, not $HOME."""
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        return pwd.getpwuid(os.getuid()).pw_dir
    return str(Path.home())


def local_user() -> str:
    """The name of the user who runs this."""
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    import getpass

    return getpass.getuser()


def table(*, alias: str, hostname: str, port: int, user: str, host_key_alias: str = "") -> dict[str, str]:
    """The tokens that nbkit reads, with their values. `%C`, `%j`, `%f` and `%T` differ between releases: refused."""
    node = socket.gethostname()
    return {
        "%": "%",
        "h": hostname,
        "n": alias,
        "p": str(port),
        "r": user,
        "d": home(),
        "u": local_user(),
        "i": str(os.getuid()) if hasattr(os, "getuid") else "",
        "k": host_key_alias or alias,
        "l": node,
        "L": node.partition(".")[0],
    }


def expand(text: str, tokens: Mapping[str, str], *, what: str) -> str:
    """Replace each `%x` in `text`.

    Raises: SshConfigError for a token that `tokens` does not hold; `what` says where it stood.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise SshConfigError(
                f"{what}: nbkit does not know the token {match[0]!r} in {text!r}.",
                hint=f"write it out; known are {' '.join('%' + name for name in tokens)}",
            )
        return tokens[match[1]]

    return _TOKEN.sub(value, text)


def expand_path(text: str, tokens: Mapping[str, str] | None, *, what: str, variables: bool = True) -> str:
    """A path as OpenSSH makes it of `text`: tokens and `${NAME}` first, then `~` and `~user`.

    `tokens` of None leaves `%` alone (ssh -G has already replaced it).

    Raises: SshConfigError for an unknown token, variable or user.
    """
    if tokens is not None:
        # One pass, as OpenSSH does it: what a token or a variable brings in is not looked at again.
        parts = re.split(r"(\$\{[^}]*\}?)", text) if variables else [text]
        text = "".join(
            _variable(part, what) if variables and part.startswith("${") else expand(part, tokens, what=what)
            for part in parts
        )
    if not text.startswith("~"):
        return text
    name, slash, rest = text[1:].partition("/")
    return (home() if not name else _home_of(name, what)) + slash + rest


def _variable(text: str, what: str) -> str:
    name = (_VARIABLE.fullmatch(text) or ["", ""])[1]
    if not text.endswith("}") or name not in os.environ:
        raise SshConfigError(
            f"{what}: the environment has no variable for {text!r}.", hint=f"export {name}=... or write the path out"
        )
    return os.environ[name]


def _home_of(name: str, what: str) -> str:
    try:
        import pwd

        return pwd.getpwnam(name).pw_dir
    except (ImportError, KeyError) as error:
        raise SshConfigError(f"{what}: no user {name!r} for ~{name}.", hint="write the path out") from error
