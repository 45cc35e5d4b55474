"""nbkit's own reader of ssh_config, for machines without OpenSSH: a subset, and an error for everything outside it.

Read: Host (patterns, negation), Match host/originalhost/user/localuser/all (negation), Include, quoting, `=`, comments,
first value wins, IdentityFile and CertificateFile add up. Refused with file and line: Match exec/final/canonical/
localnetwork/tagged and any other condition, canonicalisation, unknown keywords, broken lines.
"""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from nbkit.errors import SshConfigError
from nbkit.ssh.tokens import expand, home, local_user

_SPACE = " \t\r\n"
_DEEPEST = 16  # OpenSSH's limit for Include


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ONE_WORD = _words("""
    addressfamily checkhostip connecttimeout hashknownhosts hostkeyalias hostname identitiesonly identityagent
    kbdinteractiveauthentication knownhostscommand passwordauthentication pkcs11provider port pubkeyauthentication
    revokedhostkeys user gssapiauthentication stricthostkeychecking controlpath controlmaster
""")
_ADDING = frozenset({"identityfile", "certificatefile"})
_LISTS = frozenset({"userknownhostsfile", "globalknownhostsfile"})
_RENAMED = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "tisauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "dsaauthentication": "pubkeyauthentication",
    "identityfile2": "identityfile",
    "smartcarddevice": "pkcs11provider",
    "globalknownhostsfile2": "",
    "userknownhostsfile2": "",
}
_YES_NO = _words("""
    checkhostip hashknownhosts identitiesonly kbdinteractiveauthentication passwordauthentication
    gssapiauthentication
""")
# Read by ssh and of no weight for what nbkit does: accepted, not judged.
_IGNORED = _words("""
    addkeystoagent batchmode bindaddress bindinterface casignaturealgorithms ciphers cipher clearallforwardings
    compression compressionlevel connectionattempts controlpersist dynamicforward enableescapecommandline
    enablesshkeysign escapechar exitonforwardfailure fallbacktorsh fingerprinthash forkafterauthentication
    forwardagent forwardx11 forwardx11timeout forwardx11trusted gatewayports gssapidelegatecredentials
    gssapikeyexchange gssapitrustdns gssapiclientidentity gssapirenewalforcesrekey gssapikexalgorithms
    gssapiserveridentity hostbasedacceptedalgorithms hostbasedauthentication hostbasedkeytypes hostkeyalgorithms
    ipqos kbdinteractivedevices kexalgorithms keepalive localcommand localforward loglevel logverbose macs
    nohostauthenticationforlocalhost numberofpasswordprompts obscurekeystroketiming permitlocalcommand
    permitremoteopen preferredauthentications protocol proxyusefdpass pubkeyacceptedalgorithms
    pubkeyacceptedkeytypes rekeylimit remotecommand remoteforward requesttty requiredrsasize rhostsrsaauthentication
    rsaauthentication securitykeyprovider sendenv serveralivecountmax serveraliveinterval sessiontype setenv
    stdinnull streamlocalbindmask streamlocalbindunlink syslogfacility tcpkeepalive tunnel tunneldevice
    updatehostkeys useprivilegedport useroaming usersh verifyhostkeydns versionaddendum visualhostkey xauthlocation
    channeltimeout warnweakcrypto refuseconnection
""")


@dataclass
class Found:
    """What the files say about one host: single values by keyword, lists for those that add up.

    Attributes:
        jump: ProxyJump as written; "none" or empty for none.
        files: Every file read, in order.
    """

    values: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    jump: str = ""
    proxy_command: str = ""
    files: list[str] = field(default_factory=list)


@dataclass
class _Reader:
    host: str
    found: Found
    user_files: bool
    active: bool = True

    def read(self, path: Path, depth: int, never: bool) -> None:
        try:
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                text = file.read()
        except FileNotFoundError:
            if depth == 0:
                raise
            return
        except OSError as error:
            raise SshConfigError(f"{path}: cannot be read ({error.strerror}).", hint=f"chmod 600 {path}") from error
        if self.user_files and hasattr(os, "getuid"):
            _check_owner(path, state)
        self.found.files.append(str(path))
        for number, line in enumerate(text.decode("utf-8", "surrogateescape").split("\n"), start=1):
            self._line(line, path, number, depth, never)

    def _line(self, line: str, path: Path, number: int, depth: int, never: bool) -> None:
        where = f"{path}, line {number}"
        keyword, rest = _keyword(line, where)
        if not keyword:
            return
        if not rest:
            raise _broken(where, f"no value after {keyword!r}")
        if keyword in {"proxycommand", "proxyjump"}:
            self._proxy(keyword, rest, where)
            return
        if keyword in _IGNORED:
            return
        words = split(rest, where)
        if keyword == "host":
            self.active = not never and self._host(words, where)
        elif keyword == "match":
            self.active = self._match(words, where, never) and not never
        elif keyword == "include":
            self._include(words, where, depth, never)
        else:
            self._value(_RENAMED.get(keyword, keyword), keyword, words, where)

    def _value(self, name: str, keyword: str, words: list[str], where: str) -> None:
        if keyword in _RENAMED and not name:
            return
        if not words or not words[0]:
            raise _broken(where, f"no value after {keyword!r}")
        if name in _LISTS:
            self._list(name, words, where)
        elif name in _ONE_WORD | _ADDING:
            _check(name, keyword, words, where)
            self._keep(name, words[0])
        elif name == "canonicalizehostname":
            if words[0].lower() not in {"no", "false"}:
                raise _refused(where, keyword)
        elif not name.startswith("canonic"):  # those are of no weight while canonicalisation is off
            raise _refused(where, keyword if name in {"tag", "ignoreunknown"} else f"the unknown keyword {keyword!r}")

    def _list(self, name: str, words: list[str], where: str) -> None:
        if len(words) > 1 and "none" in (word.lower() for word in words):
            raise _broken(where, "'none' stands with other files")
        if self.active:
            self.found.lists.setdefault(name, words)

    def _keep(self, name: str, word: str) -> None:
        if not self.active:
            return
        if name not in _ADDING:
            self.found.values.setdefault(name, word)
        elif word not in self.found.lists.setdefault(name, []):
            self.found.lists[name].append(word)

    def _proxy(self, keyword: str, rest: str, where: str) -> None:
        value = rest.lstrip(_SPACE + "=")
        taken = bool(self.found.jump or self.found.proxy_command)
        if keyword == "proxycommand":
            if self.active and not self.found.proxy_command and self.found.jump.lower() in {"", "none"}:
                self.found.proxy_command = value
            return
        value = value.partition("#")[0].rstrip(_SPACE)
        if not value:
            raise _broken(where, "no value after 'proxyjump'")
        if self.active and not taken:
            self.found.jump = value

    def _host(self, patterns: list[str], where: str) -> bool:
        if not all(patterns):
            raise _broken(where, "an empty pattern after Host")
        on = False
        for pattern in patterns:
            if matches(self.host, pattern.removeprefix("!")):
                if pattern.startswith("!"):
                    return False
                on = True
        return on

    def _match(self, words: list[str], where: str, never: bool) -> bool:
        result, left = True, list(words)
        if not left:
            raise _broken(where, "Match without a condition")
        while left:
            word = left.pop(0)
            name, equals, value = word.partition("=")
            negated = name.startswith("!")
            name = name.removeprefix("!").lower()
            if name == "all":
                if len(words) > 1 or equals:
                    raise _refused(where, "Match all together with other conditions")
                return not negated
            if name not in {"host", "originalhost", "user", "localuser"}:
                raise _refused(where, f"Match {name}")
            value = value if equals else left.pop(0) if left else ""
            if not value:
                raise _broken(where, f"Match {name} without a value")
            if not never and self._holds(name, value, where) == negated:
                result = False
        return result

    def _holds(self, name: str, patterns: str, where: str) -> bool:
        subject = self._subject(name, where)
        if name.endswith("host"):  # OpenSSH compares host names without regard to case here, unlike in Host
            return matches_list(subject.lower(), patterns.lower())
        return matches_list(subject, patterns)

    def _subject(self, name: str, where: str) -> str:
        if name == "host":
            hostname = self.found.values.get("hostname")
            return expand(hostname, {"h": self.host, "%": "%"}, what=where) if hostname else self.host
        if name == "originalhost":
            return self.host
        return local_user() if name == "localuser" else self.found.values.get("user", local_user())

    def _include(self, words: list[str], where: str, depth: int, never: bool) -> None:
        if depth >= _DEEPEST:
            raise _refused(where, f"more than {_DEEPEST} levels of Include")
        base = f"{home()}/.ssh" if self.user_files else "/etc/ssh"
        for word in words:
            if not word:
                raise _broken(where, "an empty name after Include")
            if word.startswith("~") and not word.startswith("~/"):
                raise _refused(where, f"Include {word}")
            pattern = f"{home()}{word[1:]}" if word.startswith("~/") else word
            if not pattern.startswith("/"):
                pattern = f"{base}/{pattern}"
            outer = self.active
            for name in sorted(glob.glob(pattern, include_hidden=False)):  # noqa: PTH207 - OpenSSH's own glob(3)
                if not Path(name).is_dir():
                    self.read(Path(name), depth + 1, never or not outer)
                self.active = outer


def read(host: str, paths: list[tuple[Path, bool]], *, user: str = "", port: int = 0) -> Found:
    """What the files `paths` say about `host`; each path says whether it is the user's (True) or the system's.

    Raises: SshConfigError with file and line for what is broken or outside the subset.
    """
    found = Found()
    if user:
        found.values["user"] = user
    if port:
        found.values["port"] = str(port)
    for path, users in paths:
        _Reader(host, found, users).read(path, 0, never=False)
    return found


def split(text: str, where: str) -> list[str]:
    """Words of a line: quotes, backslash escapes, and a comment that begins where a word could.

    Raises: SshConfigError for a quote without its pair.
    """
    words: list[str] = []
    i = 0
    while i < len(text):
        if text[i] in " \t":
            i += 1
            continue
        if text[i] == "#":
            break
        word, quote = [], ""
        while i < len(text):
            c, after = text[i], text[i + 1 : i + 2]
            if c == "\\" and (after in {"'", '"', "\\"} or (not quote and after == " ")) and after:
                word.append(after)
                i += 1
            elif not quote and c in " \t":
                break
            elif not quote and c in "\"'":
                quote = c
            elif quote and c == quote:
                quote = ""
            else:
                word.append(c)
            i += 1
        if quote:
            raise _broken(where, "a quote without its pair")
        words.append("".join(word))
    return words


def _keyword(line: str, where: str) -> tuple[str, str]:
    """The keyword in lower case, and the rest of the line; ("", "") for an empty line or a comment."""
    line = line.partition("\0")[0]
    text = (line[:1] + line[1:].rstrip(_SPACE + "\f")) if line else ""
    keyword, rest = _first_word(text, where)
    if not keyword and rest is not None:
        keyword, rest = _first_word(rest, where)
    if not keyword or keyword[0] in "\n#":
        return "", ""
    return keyword.lower(), (rest or "").lstrip(_SPACE)


def _first_word(text: str, where: str) -> tuple[str, str | None]:
    """OpenSSH's strdelim: the text up to a space, a quoted part or one `=`, and what follows."""
    at = next((i for i, c in enumerate(text) if c in _SPACE + '"='), None)
    if at is None:
        return text, None
    if text[at] == '"':
        end = text.find('"', at + 1)
        if end < 0:
            raise _broken(where, "a quote without its pair")
        return text[:at] + text[at + 1 : end], text[end + 1 :].lstrip(_SPACE)
    rest = text[at + 1 :].lstrip(_SPACE)
    if text[at] != "=" and rest.startswith("="):
        rest = rest[1:].lstrip(_SPACE)
    return text[:at], rest


def matches(text: str, pattern: str) -> bool:
    """OpenSSH's match_pattern: `*` and `?`, case counts."""
    t = p = 0
    star, mark = -1, 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, t
            p += 1
        elif p < len(pattern) and pattern[p] in {"?", text[t]}:
            t, p = t + 1, p + 1
        elif star >= 0:
            p, mark = star + 1, mark + 1
            t = mark
        else:
            return False
    return pattern[p:].strip("*") == ""


def matches_list(text: str, patterns: str) -> bool:
    """OpenSSH's match_pattern_list: comma-separated, and one negated match refuses."""
    found = False
    for pattern in patterns.split(","):
        if matches(text, pattern.removeprefix("!")):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _check(name: str, keyword: str, words: list[str], where: str) -> None:
    """A value that ssh would refuse is refused."""
    if len(words) > 1:
        raise _broken(where, f"more than one value after {keyword!r}")
    if name == "port":
        _check_port(words[0], where)
    if name in _YES_NO and words[0].lower() not in {"yes", "no", "true", "false"}:
        raise _broken(where, f"{keyword} is yes or no, not {words[0]!r}")


def _check_port(text: str, where: str) -> None:
    if not (text.isascii() and text.isdigit()):
        raise _refused(where, f"a port by name ({text!r})")
    if not 0 < int(text) < 65536:
        raise _broken(where, f"no such port: {text!r}")


def _check_owner(path: Path, state: os.stat_result) -> None:
    if state.st_uid not in {0, os.getuid()} or stat.S_IMODE(state.st_mode) & 0o022:
        raise SshConfigError(
            f"{path} may be written by others than you; ssh does not read such a file, and neither does nbkit.",
            hint=f"chmod go-w {path}",
        )


def _broken(where: str, what: str) -> SshConfigError:
    return SshConfigError(f"{where}: {what}.", hint=f"mend the line; ssh refuses it too: {where}")


def _refused(where: str, what: str) -> SshConfigError:
    return SshConfigError(
        f"{where}: nbkit's own reader does not understand {what}, and does not guess.",
        hint="install OpenSSH's client (then `ssh -G` is asked), or give the host as USER@HOST:PORT",
    )
