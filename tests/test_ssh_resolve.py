"""A route is what OpenSSH would do; nbkit's own reader agrees with it or says by file and line what it does not read."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from nbkit.errors import SshConfigError
from nbkit.ssh.hosts import named
from nbkit.ssh.resolve import resolve
from tests.ssh_cases import config_difference
from tests.sshd import need


@pytest.fixture
def config(tmp_path):
    """Writes an ssh_config and returns its path."""

    def write(text):
        path = tmp_path / "config"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


@pytest.mark.parametrize("start", [11_000, 12_000, 13_000])
def test_generated_files_are_read_as_ssh_reads_them(tmp_path, start):
    """150 generated ssh_config files: no difference from `ssh -G` but what the own reader says it does not read."""
    need("ssh")
    outcomes = [config_difference(seed, tmp_path) for seed in range(start, start + 50)]
    assert [] == [outcome for outcome in outcomes if outcome[0] == "DIFFERENT"]
    assert sum(outcome[0] == "same" for outcome in outcomes) > 15


@pytest.mark.parametrize("engine", ["ssh", "own"])
class TestBothEngines:
    @pytest.fixture(autouse=True)
    def _ssh(self, engine):
        if engine == "ssh":
            need("ssh")

    def test_a_chain_of_jump_hosts_is_walked_hop_by_hop(self, config, engine):
        """Each hop has its own user and port; the first brings its own jump host, later ones come by the one before."""
        path = config(
            "Host box\n ProxyJump a,ana@b:2201\nHost a\n User first\n ProxyJump door\nHost b\n Port 9\n ProxyJump not-used\n"
            "Host *\n User me\n"
        )
        assert ["me@door", "first@a", "ana@b:2201", "me@box"] == [
            str(hop) for hop in resolve("box", config=path, engine=engine).hops
        ]

    def test_a_line_to_paste_leads_to_each_hop(self, config, engine, monkeypatch, tmp_path):
        """`ssh -G` of the words that errors name a hop by is that hop; nbkit's own name for it as well, but behind others."""
        need("ssh")
        path = config(
            "Host box\n HostName 10.0.0.1\n Port 24\n ProxyJump a,ana@b:2201\nHost a\n User first\n ProxyJump door\n"
            "Host b\n Port 9\nHost *\n User me\n"
        )
        monkeypatch.chdir(tmp_path)
        for typed in ("box", "eve@box:25", "ssh://eve@box:25", "10.0.0.1", "[::1]:9"):
            route = resolve(typed, config=path.name, engine=engine)
            for hop in route.hops:
                words = shlex.split(hop.ssh)
                said = subprocess.run(
                    ["ssh", "-G", *words], cwd="/", check=True, capture_output=True, text=True, timeout=20
                )
                facts = dict(line.partition(" ")[::2] for line in said.stdout.splitlines())
                assert (hop.hostname, str(hop.port), hop.user) == tuple(
                    facts[key] for key in ("hostname", "port", "user")
                )
                again = resolve(shlex.split(hop.named)[0], config=path, engine=engine).target
                assert str(again) == str(hop)
            assert route.named == f"{shlex.quote(typed)} -F {path}"
        assert "-o ProxyJump=a -p 2201 ana@b" in resolve("box", config=path, engine=engine).hops[-2].ssh

    def test_a_loop_of_jump_hosts_is_an_error(self, config, engine):
        """A jump host that is reached through itself names the fix, and does not hang."""
        with pytest.raises(SshConfigError) as caught:
            resolve("box", config=config("Host *\n ProxyJump door\n"), engine=engine)
        assert "loop" in str(caught.value)

    def test_a_longer_loop_is_an_error(self, config, engine):
        """a through b through a: given up after a few hops."""
        with pytest.raises(SshConfigError, match="jump hosts"):
            resolve("a", config=config("Host a\n ProxyJump b\nHost b\n ProxyJump a\n"), engine=engine)

    def test_tokens_and_tilde_are_expanded(self, config, engine):
        """Paths come out absolute, with ssh's tokens in place."""
        path = config(
            "Host box\n HostName %h.lab\n User ana\n Port 24\n IdentityFile ~/k/%h-%r-%p-%n-%%\n IdentityAgent none\n"
        )
        hop = resolve("box", config=path, engine=engine).target
        assert hop.identity_files[0].endswith("/k/box.lab-ana-24-box-%")
        assert hop.identity_files[0].startswith("/")
        assert "" == hop.agent

    def test_what_is_typed_goes_before_the_file(self, config, engine):
        """user@host:port wins over User and Port."""
        hop = resolve("bob@box:7", config=config("Host box\n User ana\n Port 24\n"), engine=engine).target
        assert ("bob", 7) == (hop.user, hop.port)


def test_a_file_others_may_write_is_not_read(config):
    """ssh does not read ~/.ssh/config when the group may write it; the own reader refuses any such file."""
    path = config("Host box\n User ana\n")
    path.chmod(0o666)
    with pytest.raises(SshConfigError, match="may be written by others"):
        resolve("box", config=path, engine="own")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('User a\nMatch exec "touch {canary}"\n User b\n', 2, "Match exec"),
        ("Match final all\n", 1, "Match final"),
        ("Host a\n  Frobnicate yes\n", 2, "frobnicate"),
        ("CanonicalizeHostname yes\n", 1, "canonicalizehostname"),
        ("\n\nPort ssh\n", 3, "port by name"),
        ("Match host a tagged b\n", 1, "Match tagged"),
    ],
)
def test_what_is_outside_the_subset_is_refused_by_file_and_line(config, tmp_path, text, line, word):
    """The own reader does not guess, and runs nothing."""
    path = config(text.format(canary=tmp_path / "canary"))
    with pytest.raises(SshConfigError, match=rf"line {line}: .*{word}") as caught:
        resolve("a", config=path, engine="own")
    assert str(path) in caught.value.message
    assert not (tmp_path / "canary").exists()


def test_an_unknown_token_is_refused(config):
    """%C differs between releases of OpenSSH: refused by name, not passed on."""
    with pytest.raises(SshConfigError, match="%C"):
        resolve("a", config=config("IdentityFile ~/.ssh/%C\n"), engine="own")


def test_a_missing_file_is_said(tmp_path):
    """A path that was given and is not there is an error, not an empty configuration."""
    with pytest.raises(SshConfigError, match=r"no such file|Can't open"):
        resolve("a", config=tmp_path / "none", engine="own")


def test_named_hosts_leave_wildcards_out(config, tmp_path):
    """`nbkit hosts` lists names of their own, through Include."""
    (tmp_path / "more").write_text("Host c d-*\n")
    path = config(f"Host a *.lab !x\n User y\nHost b\nInclude {tmp_path}/mor*\n")
    assert ["a", "b", "c"] == list(named(path))
