"""What a user may type as a host, and what never reaches a shell."""

from __future__ import annotations

import pytest

from nbkit.errors import HostNameError
from nbkit.ssh.resolve import resolve
from nbkit.ssh.route import Destination, Hop, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box", Destination("box")),
        ("ana@box", Destination("box", "ana")),
        ("ana@box:2222", Destination("box", "ana", 2222)),
        ("a@b@box", Destination("box", "a@b")),
        ("box:2222", Destination("box", "", 2222)),
        ("ssh://ana@box:24/", Destination("box", "ana", 24)),
        ("ssh://a%40b@box", Destination("box", "a@b")),
        ("::1", Destination("::1")),
        ("ana@[::1]:24", Destination("::1", "ana", 24)),
        ("[fe80::1%eth0]", Destination("fe80::1%eth0")),
    ],
)
def test_a_host_is_taken_apart(text, expected):
    """User, host and port, in every form that ssh and its users write."""
    assert expected == parse(text)


def test_what_is_no_text_is_no_host():
    """`nbkit.connect(None)`: a variable that was never set."""
    with pytest.raises(HostNameError, match="A host is a string, not NoneType"):
        parse(None)


@pytest.mark.parametrize(
    "text",
    ["-oProxyCommand=touch {canary}", "a;touch {canary}", "$(touch {canary})", "`touch {canary}`", "a b", "", "a\nb", "x|y",
     "u;touch {canary}@h", "-l@h", "h:0", "h:99999", "h:x", "ssh://", "a\x1b[2J", "ana@-oProxyCommand=touch {canary}"],
)  # fmt: skip
def test_no_shell_sees_a_hostile_name(text, tmp_path):
    """A name that a shell, ssh or a terminal would act on is a usage error before anything runs; the canary is not made."""
    canary = tmp_path / "canary"
    config = tmp_path / "config"
    config.write_text('Match exec "touch pwned-%h"\n  User x\nHost *\n  ProxyCommand nc %h %p\n')
    config.chmod(0o600)
    with pytest.raises(HostNameError) as caught:
        resolve(text.format(canary=canary), config=config)
    assert 2 == caught.value.exit_code
    assert [config] == list(tmp_path.iterdir())


def test_a_hostile_name_in_the_configuration_is_refused_too(tmp_path):
    """HostName and User come from files that others may have written: the same rule holds for them."""
    config = tmp_path / "config"
    for line in ("HostName a;id", "User a;id", "HostName -x"):
        config.write_text(f"Host box\n  {line}\n")
        config.chmod(0o600)
        with pytest.raises(HostNameError, match="a shell would act on"):
            resolve("box", config=config, engine="own")


@pytest.mark.parametrize(
    ("hop", "expected"),
    [
        (Hop("b", "box", 22, "u"), "box"),
        (Hop("b", "box", 24, "u"), "[box]:24"),
        (Hop("b", "box", 24, "u", host_key_alias="pet"), "pet"),
    ],
)
def test_the_name_in_known_hosts(hop, expected):
    """ssh's own: the port counts unless it is 22, and HostKeyAlias replaces all."""
    assert expected == hop.known_name
