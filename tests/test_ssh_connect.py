"""Connecting to a real sshd: logins, routes, causes of failure, and servers that mean harm."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import paramiko
import pytest

from nbkit.errors import AuthenticationError, HostNameError, UnreachableError
from nbkit.ssh import connect
from nbkit.ssh.text import plain
from tests.ssh_hostile import Doorman, saying, serving
from tests.sshd import free_port, keygen, need, running
from tests.waiting import until


def allow(box, public: Path) -> None:
    """Let one more key in."""
    with (box.folder / "authorized_keys").open("a") as file:
        file.write(public.read_text())


class TestLogin:
    @pytest.mark.parametrize("kind", ["ecdsa", "rsa", "ed25519"])
    def test_key_types(self, box, tmp_path, kind):
        """ed25519, ECDSA and RSA (SHA-2) let us in; the last opened by its passphrase, asked for once."""
        passphrase = "pass word" if kind == "ed25519" else ""
        key = keygen(tmp_path / f"id_{kind}", kind, passphrase=passphrase)
        allow(box, Path(f"{key}.pub"))
        config = box.write_config(f"IdentityFile {key}", path=tmp_path / "config")
        asked: list[str] = []

        def ask(prompt, seen):
            asked.append(prompt)
            return "wrong" if len(asked) == 1 else passphrase

        with connect("box", config=config, ask=ask) as session:
            assert [f"publickey id_{kind}"] == session.methods
        assert ([f"Passphrase for {key}: "] * 2 if passphrase else []) == asked

    def test_a_passphrase_is_asked_only_for_a_key_the_server_takes(self, box, tmp_path):
        """A locked key that the server refuses costs no question."""
        locked = keygen(tmp_path / "id_locked", passphrase="x")
        config = box.write_config(f"IdentityFile {locked}", f"IdentityFile {box.key}", path=tmp_path / "config")
        with connect("box", config=config, ask=lambda *_: pytest.fail("asked")) as session:
            assert ["publickey id_ed25519"] == session.methods

    def test_a_locked_key_with_nobody_to_ask(self, box, tmp_path):
        """The error says that the key would do, and what to run."""
        locked = keygen(tmp_path / "id_locked", passphrase="x")
        allow(box, Path(f"{locked}.pub"))
        config = box.write_config(f"IdentityFile {locked}", path=tmp_path / "config")
        with pytest.raises(AuthenticationError, match="locked by a passphrase and there is nobody to ask") as caught:
            connect("box", config=config, ask=None)
        assert caught.value.hint.startswith(f"ssh-add {locked}")
        assert 1 == caught.value.message.count("Note:")

    @pytest.mark.parametrize("another", [True, False])
    def test_a_passphrase_that_is_not_given(self, box, tmp_path, another):
        """Is asked for once, not again; then the next key is tried."""
        locked = keygen(tmp_path / "id_locked", passphrase="x")
        allow(box, Path(f"{locked}.pub"))
        more = [f"IdentityFile {box.key}"] if another else []
        config = box.write_config(f"IdentityFile {locked}", *more, path=tmp_path / "config")
        asked: list[str] = []
        refused = pytest.raises(AuthenticationError, match=r"tried 1: id_locked .accepted, but not usable here")
        with contextlib.nullcontext() if another else refused, connect(
            "box", config=config, ask=lambda prompt, _: asked.append(prompt)
        ) as session:  # fmt: skip
            assert ["publickey id_ed25519"] == session.methods
        assert [f"Passphrase for {locked}: "] == asked

    def test_an_agent(self, box, tmp_path):
        """A key that only an agent holds lets us in; IdentityAgent names the socket."""
        need("ssh-agent", "ssh-add")
        key = keygen(tmp_path / "held")
        allow(box, Path(f"{key}.pub"))
        sock = Path("/tmp") / f"nbkit-agent-{os.getpid()}-{os.urandom(3).hex()}"
        agent = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(sock.exists, "the agent's socket")
            subprocess.run(["ssh-add", "-q", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(sock)}, check=True, timeout=20,
                           stdin=subprocess.DEVNULL)  # fmt: skip
            key.unlink()
            config = box.write_config(
                f"IdentityFile {tmp_path}/none", f"IdentityAgent {sock}", path=tmp_path / "config"
            )
            with connect("box", config=config, ask=None) as session:
                assert ["publickey agent:test"] == session.methods
        finally:
            agent.kill()
            agent.wait(timeout=10)
            sock.unlink(missing_ok=True)

    def test_a_certificate(self, tmp_path):
        """A key that only its certificate makes welcome."""
        need("sshd", "ssh-keygen")
        authority = keygen(tmp_path / "ca")
        with running(tmp_path / "box", f"TrustedUserCAKeys {authority}.pub", "AuthorizedKeysFile none") as box:
            subprocess.run(["ssh-keygen", "-q", "-s", str(authority), "-I", "t", "-n", box.user, f"{box.key}.pub"],
                           check=True, timeout=20)  # fmt: skip
            with connect("box", config=box.config, ask=None) as session:
                assert ["publickey id_ed25519 (certificate)"] == session.methods

    def test_a_key_that_needs_nobody_signs_at_once(self, tmp_path):
        """One request lets us in: not asked before is whether anybody gets in, nor whether the key would do."""
        need("sshd", "ssh-keygen")
        with running(tmp_path / "box", "LogLevel DEBUG1") as box:
            with connect("box", config=box.config, ask=None):
                pass
            assert ["publickey"] == re.findall(r"userauth-request for user .* method (\S+)", box.log)

    def test_a_refusal_names_keys_user_and_fix(self, box, tmp_path):
        """Which keys were tried, for whom, and what to paste; exit code 4."""
        stranger = keygen(tmp_path / "id_stranger")
        config = box.write_config(f"IdentityFile {stranger}", path=tmp_path / "config")
        with pytest.raises(AuthenticationError) as caught:
            connect("box", config=config, ask=None)
        assert 4 == caught.value.exit_code
        assert f"refused us, user {box.user!r}; it takes publickey; tried 1: id_stranger." in caught.value.message
        assert f"ssh-copy-id -i {stranger}.pub -F {config} box " in caught.value.hint


@pytest.fixture(scope="module")
def host_key():
    """A host key for servers in this process."""
    return paramiko.ECDSAKey.generate()


@pytest.fixture
def visit(tmp_path, host_key):
    """Connects to a port of this machine whose host key is `host_key`."""

    def go(port, ask=None, key="none", **more):
        known, config = tmp_path / "known", tmp_path / f"config{port}"
        known.write_text(f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n")
        config.write_text(f"Host s\n  HostName 127.0.0.1\n  Port {port}\n  User ana\n  UserKnownHostsFile {known}\n"
                          f"  IdentityFile {key}\n  IdentityAgent none\n")  # fmt: skip
        config.chmod(0o600)
        return connect("s", config=config, ask=ask, **more)

    return go


class TestQuestions:
    def test_a_server_that_asks_for_nothing(self, visit, host_key, tmp_path):
        """One that takes no key, but anybody, lets us in with a key offered and without."""
        open_house = Doorman()
        open_house.check_auth_none = lambda username: paramiko.AUTH_SUCCESSFUL
        with serving(host_key, open_house) as port:
            with visit(port) as session:
                assert ["none"] == session.methods
            with visit(port, key=keygen(tmp_path / "id_stranger")) as session:
                assert ["none"] == session.methods
        assert ["key"] == open_house.seen

    def test_a_password(self, visit, host_key):
        """Asked for by the callback, unseen, and again when it was wrong."""
        doorman, answers = Doorman(), iter(["wrong", "open sesame"])
        prompts = []

        def ask(prompt, seen):
            prompts.append((prompt.partition("@")[0], seen))
            return next(answers)

        with serving(host_key, doorman) as port, visit(port, ask) as session:
            assert ["password"] == session.methods
        assert [("Password for ana", False)] * 2 == prompts
        assert ["wrong", "open sesame"] == doorman.seen

    def test_two_factors_with_control_characters_shown(self, visit, host_key):
        """keyboard-interactive: both questions come, and what the server writes cannot move the cursor."""
        doorman = Doorman("keyboard-interactive", code="123456")
        prompts = []

        def ask(prompt, seen):
            prompts.append((prompt, seen))
            return "123456" if seen else "open sesame"

        with serving(host_key, doorman) as port, visit(port, ask) as session:
            assert ["keyboard-interactive"] == session.methods
        assert [("Sign\\x1b[2Jon\nTwo questions\nPassword: ", False), ("Code\\x07: ", True)] == prompts

    def test_nobody_to_ask(self, visit, host_key):
        """No prompt on a stdin that nobody reads: an error that says to use a terminal."""
        with serving(host_key, Doorman()) as port, pytest.raises(AuthenticationError, match="nobody to ask") as caught:
            visit(port)
        assert "terminal" in caught.value.hint


FIRST_FOUR = """
import sys, threading
from nbkit.ssh import connect

sys.setswitchinterval(1e-5)
found, ready = [], threading.Barrier(4)

def go(engine):
    ready.wait()
    try:
        connect(sys.argv[1], config="none", ask=None, engine=engine)
    except Exception as error:
        found.append(type(error).__name__)

threads = [threading.Thread(target=go, args=(engine,)) for engine in ("ssh", "paramiko") * 2]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*found)
"""


def test_the_first_connections_may_be_several_at_once():
    """As `nbkit hosts` makes them: what is loaded for the first is not met half loaded, by either engine."""
    need("ssh")
    words = [sys.executable, "-c", FIRST_FOUR, f"127.0.0.1:{free_port()}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert ["UnreachableError"] * 4 == done.stdout.split()


class TestHostile:
    def test_channels_from_the_server_are_refused(self, visit, host_key):
        """Agent, X11 and reverse forwards: none is accepted, asked for or not."""
        outcomes = []
        done = threading.Event()

        def then(transport):
            for kind in ("auth-agent@openssh.com", "x11", "forwarded-tcpip"):
                try:
                    transport.open_channel(kind, ("127.0.0.1", 1), ("127.0.0.1", 2), timeout=10)
                    outcomes.append("opened")
                except paramiko.ChannelException as error:
                    outcomes.append(error.code)
            done.set()

        with serving(host_key, Doorman(), then) as port, visit(port, lambda *_: "open sesame") as session:
            assert done.wait(30)
            assert session.alive
        assert [1, 1, 1] == outcomes

    @pytest.mark.parametrize(
        ("kind", "weak"), [("ciphers", ("aes128-cbc", "3des-cbc")), ("macs", ("hmac-md5", "hmac-sha1", "hmac-sha1-96"))]
    )
    def test_a_server_with_weak_algorithms_only_is_refused(self, visit, host_key, monkeypatch, kind, weak):
        """3des, cbc, md5 and sha1 are not spoken; the error says what is missing."""

        class Weak(paramiko.Transport):
            _preferred_ciphers = weak if kind == "ciphers" else ("aes128-ctr",)
            _preferred_macs = weak if kind == "macs" else ("hmac-sha2-256",)

        monkeypatch.setattr("tests.ssh_hostile.paramiko.Transport", Weak)
        with (
            serving(host_key, Doorman()) as port,
            pytest.raises(UnreachableError, match=f"no acceptable {kind}") as caught,
        ):
            visit(port)
        assert "no 3des, cbc, sha1, md5" in caught.value.hint

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ((b"HTTP/1.1 400 Bad\x1b[31m\r\n",), "HTTP/1.1 400 Bad"),
            ((b"x" * 20_000,), "does not end|more than 8192 bytes"),
            ((b"SSH-2.0-x\r\n", b"\x7f\xff\xff\xfc" + b"\x00" * 60), "packet of"),
            ((b"SSH-1.5-old\r\n",), "version|algorithm"),
        ],
        ids=["http", "endless line", "huge packet", "ssh 1"],
    )
    def test_garbage_is_bounded_and_harmless(self, visit, parts, expected):
        """A web server, an endless banner, a packet of 2 GB, SSH 1: a cause, no memory taken, no escape sequence."""
        with (
            saying(*parts, hold="HTTP" not in str(parts[0])) as port,
            pytest.raises(UnreachableError, match=expected) as caught,
        ):
            visit(port)
        assert "\x1b" not in str(caught.value)
        assert "Errno" not in str(caught.value)

    def test_a_server_that_says_nothing_is_given_up(self, visit, monkeypatch):
        """The version banner has a deadline."""
        monkeypatch.setattr(sys.modules["nbkit.ssh.connect"], "HELLO_S", 0.5)
        start = time.monotonic()
        with saying() as port, pytest.raises(UnreachableError, match="does not speak SSH"):
            visit(port)
        assert time.monotonic() - start < 20

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a\x1b[2Jb\u202ec\r\n", "a\\x1b[2Jb\\u202ec\\r\\n"),
            (b"\xff\x07", "\ufffd\\x07"),
            ("x" * 2000, "x" * 1000 + "…"),
        ],
    )
    def test_text_is_made_plain(self, text, expected):
        """Control and direction characters are shown, not obeyed; length is bounded."""
        assert expected == plain(text)


class TestCauses:
    def test_nothing_listens(self, visit):
        """A refused port: exit code 3, and what to look at."""
        with pytest.raises(UnreachableError, match="Connection refused") as caught:
            visit(free_port())
        assert 3 == caught.value.exit_code
        assert "is sshd running" in caught.value.hint

    def test_no_such_name(self):
        """A name that does not resolve is said by name."""
        with pytest.raises(UnreachableError, match=r"no host 'nbkit-nowhere\.invalid'|No answer from DNS"):
            connect("nbkit-nowhere.invalid", config="none", ask=None, timeout_s=10)

    def test_a_proxy_command_that_does_not_work(self, tmp_path):
        """The command is what to look at, not the port, which nobody dialled."""
        (tmp_path / "config").write_text("Host behind\n  ProxyCommand nbkit-no-such-program %h\n")
        with pytest.raises(UnreachableError, match="nbkit-no-such-program") as caught:
            connect("behind", config=str(tmp_path / "config"), ask=None, timeout_s=10)
        assert f"does its ProxyCommand work? look with: ssh -v -F {tmp_path}/config behind" == caught.value.hint
        assert "Errno" not in caught.value.message

    @pytest.mark.parametrize("name", ["../x", "a..b", "a\udcffb", "a" * 64])
    def test_what_no_name_can_be(self, name):
        """A name that the resolver cannot even be asked for is wrong usage, not a host that is away."""
        with pytest.raises(HostNameError, match="is not a host name") as caught:
            connect(name, config="none", ask=None, timeout_s=10)
        assert 2 == caught.value.exit_code

    def test_no_answer(self, visit):
        """A port that takes no connection (its queue is full) is given up after the time asked for."""
        with socket.socket() as full, contextlib.ExitStack() as stack:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            start = time.monotonic()
            with pytest.raises(UnreachableError, match=r"no answer within 1 s|does not speak SSH"):
                visit(full.getsockname()[1], timeout_s=1.0)
            assert time.monotonic() - start < 40


class TestRoutes:
    def test_through_a_jump_host(self, box, tmp_path):
        """Two servers: commands run on the second, which is reached from the first; each logs its own login."""
        with running(tmp_path / "door") as door:
            config = tmp_path / "config"
            door.write_config(path=config, alias="door")
            box.write_config("ProxyJump door", path=config)
            with connect("box", config=config, ask=None) as session:
                assert "hi" == session.run(["echo", "hi"]).text
                assert 2 == len(session.facts["route"])
                content = os.urandom(3 << 20)
                assert content == session.run(["cat"], input=content).stdout
            assert "Accepted publickey" in door.log
            door.known_hosts.write_text("")
            with pytest.raises(Exception, match=r"door \(\S+, hop 1 of 2\) is not known") as caught:
                connect("box", config=config, ask=None)
            assert f"nbkit trust door -F {config} SHA256" in caught.value.hint
            assert 4 == caught.value.exit_code

    def test_a_jump_host_that_cannot_reach_the_next(self, box, tmp_path):
        """Both hops are named: by the alias, the address, and where on the way they are."""
        config = tmp_path / "config"
        box.write_config(path=config, alias="door")
        config.write_text(
            config.read_text() + f"Host far\n  HostName 127.0.0.1\n  Port {free_port()}\n  ProxyJump door\n"
        )
        with pytest.raises(UnreachableError) as caught:
            connect("far", config=config, ask=None)
        said = r"far \(\S+@127.0.0.1:\d+, hop 2 of 2\) cannot be reached from the hop before it, door \(\S+, hop 1 of 2\): "
        assert re.match(f"{said}Connection refused", caught.value.message)

    @pytest.mark.parametrize("engine", ["paramiko", "ssh"])
    def test_a_jump_host_that_is_off(self, box, tmp_path, engine):
        """It is named as ProxyJump names it, with its place on the way, and the line to paste leads to it; the host is not."""
        config, port = tmp_path / "config", free_port()
        box.write_config(path=config, alias="door")
        box.write_config(f"ProxyJump door,ana@127.0.0.1:{port}", path=config)
        box.write_config("ProxyJump gate", path=config, alias="far")
        config.write_text(f"{config.read_text()}Host gate\n  HostName 127.0.0.1\n  Port {port}\n  User ana\n")
        with pytest.raises(UnreachableError) as caught:
            connect("far", config=config, ask=None, engine=engine)
        assert f"gate (ana@127.0.0.1:{port}, hop 1 of 2)" in caught.value.message
        assert "Connection refused" in caught.value.message
        assert 0 == caught.value.hop
        with pytest.raises(UnreachableError) as caught:
            connect("box", config=config, ask=None)
        assert caught.value.message.startswith(
            f"ana@127.0.0.1:{port} (hop 2 of 3) cannot be reached from the hop before it"
        )

    def test_a_proxy_command(self, box, tmp_path):
        """Its stdin and stdout are the connection, tokens in place; it ends with the session."""
        relay = ("import socket,sys,threading,os;s=socket.create_connection((sys.argv[1],int(sys.argv[2])));"
                 "threading.Thread(target=lambda:[os.write(1,d) for d in iter(lambda:s.recv(65536),b'')],daemon=True).start();"
                 "[s.sendall(d) for d in iter(lambda:os.read(0,65536),b'')]")  # fmt: skip
        script = tmp_path / "relay.py"
        script.write_text(relay)
        config = box.write_config(f"ProxyCommand {sys.executable} {script} %h %p", path=tmp_path / "config")
        with connect("box", config=config, ask=None) as session:
            assert "hi" == session.run(["echo", "hi"]).text
        until(lambda: str(script) not in _command_lines(), "the end of the proxy command")

    def test_a_proxy_command_that_fails_is_quoted(self, box, tmp_path):
        """What it wrote to stderr is in the error."""
        config = box.write_config("ProxyCommand echo no way >&2; exit 1", path=tmp_path / "config")
        with pytest.raises(UnreachableError, match="ProxyCommand said: no way"):
            connect("box", config=config, ask=None)


def _command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace").replace("\0", " "))
    return "\n".join(found)


class TestSecrets:
    def test_no_secret_is_seen(self, box, tmp_path, visit, host_key, caplog):
        """Password and passphrase stand in no argument list, environment, log, error or repr, even with debugging on."""
        caplog.set_level("DEBUG")
        secret = "s3cr3t-" + os.urandom(8).hex()
        locked = keygen(tmp_path / "id_secret", passphrase=secret)
        allow(box, Path(f"{locked}.pub"))
        config = box.write_config(f"IdentityFile {locked}", path=tmp_path / "config")
        said = []
        with connect("box", config=config, ask=lambda *_: secret) as session:
            said += [
                repr(session),
                str(session.facts),
                repr(session.route),
                session.run("cat /proc/[0-9]*/environ").text,
            ]
            said.append(_command_lines())
        with serving(host_key, Doorman(password=secret)) as port, visit(port, lambda *_: secret) as session:
            said += [repr(session), str(session.facts)]
        with serving(host_key, Doorman()) as port, pytest.raises(AuthenticationError) as caught:
            visit(port, lambda *_: secret)
        said += [str(caught.value), str(caught.value.as_dict()), caplog.text]
        assert "id_secret" in "".join(said)
        assert [] == [text[:200] for text in said if secret in text]
