"""The system's ssh as carrier: chosen where paramiko cannot, never laxer, prompts answered, the user's master left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbkit.errors import AuthenticationError, HostKeyError
from nbkit.ssh import connect, resolve
from nbkit.ssh.pipes import PipeProcess
from tests.sshd import keygen, running
from tests.waiting import until


def certify(folder: Path, host_key: Path) -> str:
    """A certificate for `host_key`; the known_hosts line's end that trusts its authority."""
    authority = keygen(folder / "authority")
    subprocess.run(["ssh-keygen", "-q", "-s", str(authority), "-I", "h", "-h", "-n", "127.0.0.1", f"{host_key}.pub"],
                   check=True, timeout=20, capture_output=True)  # fmt: skip
    return Path(f"{authority}.pub").read_text()


class TestChoice:
    def test_a_host_certificate(self, tmp_path):
        """A host that only a @cert-authority line knows is reached by ssh, and the record says why; one it does not, is not."""
        with running(tmp_path / "box") as box:
            line = certify(tmp_path, box.host_keys[0])
            box.stop()
            box.options = (f"HostCertificate {box.host_keys[0]}-cert.pub",)
            box.start()
            box.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{box.port} {line}")
            with connect("box", config=box.config, ask=None) as session:
                assert ["the host is known by a certificate authority"] == session.facts["why"]
                assert "hi" == session.run(["echo", "hi"]).text
            other = keygen(tmp_path / "other")
            box.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{box.port} {Path(f'{other}.pub').read_text()}")
            with pytest.raises(HostKeyError) as caught:
                connect("box", config=box.config, ask=None)
            assert 4 == caught.value.exit_code

    def test_a_master_that_runs_is_used_and_left_alone(self, box, tmp_path):
        """A connection that the user has open carries ours; it lives on after it."""
        config = box.write_config(f"ControlPath {tmp_path}/m", path=tmp_path / "config")
        master = subprocess.Popen(["ssh", "-F", str(config), "-M", "-N", "box"])
        try:
            until((tmp_path / "m").exists, "the master's socket")
            with connect("box", config=config, ask=None) as session:
                assert str(tmp_path / "m") == session.facts["master"]
                assert "hi" == session.run(["echo", "hi"]).text
            assert master.poll() is None
        finally:  # not by SIGTERM: an ssh that gets it just before it waits goes on waiting (OpenSSH 9.2)
            subprocess.run(
                ["ssh", "-F", str(config), "-O", "exit", "box"], check=False, capture_output=True, timeout=20
            )
            master.kill()
            master.wait(timeout=10)

    @pytest.mark.parametrize(
        "line", ["PKCS11Provider /usr/lib/token.so", "GSSAPIAuthentication yes", "IdentityFile {}/sk"]
    )
    def test_what_paramiko_cannot_do(self, box, tmp_path, monkeypatch, line):
        """A token's library, a Kerberos ticket and a key on a security key each call for ssh."""
        monkeypatch.setenv("KRB5CCNAME", str(tmp_path / "ticket"))
        config = box.write_config(line.format(tmp_path), path=tmp_path / "config")
        before = 1 if "PKCS11" in line else 0
        assert before == len(resolve("box", config=config).needs_ssh)
        if "GSSAPI" in line:
            (tmp_path / "ticket").touch()
        (tmp_path / "sk").touch()
        (tmp_path / "sk.pub").write_text("sk-ssh-ed25519@openssh.com AAAA")
        assert 1 == len(resolve("box", config=config).needs_ssh)


class TestTrust:
    @pytest.mark.parametrize("laxity", ["no", "accept-new"])
    def test_an_unknown_host_is_refused_whatever_the_configuration_says(self, box, tmp_path, laxity):
        """StrictHostKeyChecking is yes: nothing is accepted on first sight, and nothing is written."""
        config = box.write_config(
            f"StrictHostKeyChecking {laxity}", path=tmp_path / "config", known=tmp_path / "known_hosts"
        )
        with pytest.raises(HostKeyError, match="is not known"):
            connect("box", config=config, ask=None, engine="ssh")
        assert not (tmp_path / "known_hosts").exists()

    def test_a_jump_host_that_takes_any_key_is_refused(self, box, tmp_path):
        """ssh connects to jump hosts by their own configuration; one that accepts any key is not taken over."""
        config = tmp_path / "config"
        box.write_config("StrictHostKeyChecking no", path=config, alias="door")
        box.write_config("ProxyJump door", path=config)
        with pytest.raises(HostKeyError, match="door, a jump host, has StrictHostKeyChecking off"):
            connect("box", config=config, ask=None, engine="ssh")

    def test_a_jump_host(self, tmp_path, box):
        """ssh makes the hop, and commands run on the target."""
        with running(tmp_path / "door") as door:
            config = tmp_path / "config"
            door.write_config(path=config, alias="door")
            box.write_config("ProxyJump door", path=config)
            with connect("box", config=config, ask=None, engine="ssh") as session:
                assert "hi" == session.run(["echo", "hi"]).text
            assert "Accepted publickey" in door.log


class TestLogin:
    def test_a_passphrase_is_asked_by_us(self, box, tmp_path):
        """ssh's question comes to the callback; its answer stands in no argument list, environment or file."""
        secret = "pass 'word\" $HOME"
        locked = keygen(tmp_path / "locked", passphrase=secret)
        with (box.folder / "authorized_keys").open("a") as file:
            file.write(Path(f"{locked}.pub").read_text())
        config = box.write_config(f"IdentityFile {locked}", path=tmp_path / "config")
        asked: list[str] = []

        def ask(prompt, seen):
            asked.append(prompt)
            return secret

        with connect("box", config=config, ask=ask, engine="ssh") as session:
            found = session.run("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null").stdout
        assert [f"Enter passphrase for key '{locked}': "] == asked
        assert (True, False) == (str(config).encode() in found, secret.encode() in found)

    def test_a_refusal(self, box, tmp_path):
        """A key that the host does not take: exit code 4, ssh's own words and a fix."""
        config = box.write_config(f"IdentityFile {keygen(tmp_path / 'stranger')}", path=tmp_path / "config")
        with pytest.raises(AuthenticationError, match="Permission denied") as caught:
            connect("box", config=config, ask=None, engine="ssh")
        assert (4, True) == (caught.value.exit_code, f"ssh-copy-id -F {config} box " in caught.value.hint)


class TestCommands:
    def test_each_output_comes_to_its_own_reader(self, box):
        """One command after another, each fed and waited for: none's output is read by what waited for the one before."""
        with connect("box", config=box.config, ask=None, engine="ssh") as session:
            assert ["said"] * 40 == [session.run("printf said", input=b"x" * 1000).text for _ in range(40)]


class TestEnd:
    @pytest.mark.parametrize(("missed", "status"), [(1, 7), (1000, -signal.SIGKILL)])
    def test_a_child_that_misses_a_signal_is_ended(self, missed, status):
        """ssh may look for a signal, get one, and wait as if there were none: it gets another, in the end SIGKILL."""
        code = f"""if True:
            import os, signal
            seen = []
            signal.signal(signal.SIGTERM, lambda *_: seen.append(1) if len(seen) < {missed} else os._exit(7))
            print(".", flush=True)
            while True: signal.pause()"""
        process = PipeProcess([sys.executable, "-c", code], "code", "here", lambda: "")
        assert b"." == process.read(1, 30)
        process.close()
        assert status == process.wait(0)

    def test_a_master_that_is_stuck_is_ended(self, box):
        """A master that does nothing, whose commands' outputs stay open with it, does not live on after its session."""
        with connect("box", config=box.config, ask=None, engine="ssh") as session:
            master = session.engine._master
            os.kill(master.pid, signal.SIGSTOP)
        until(lambda: master.poll() is not None, "the master's end", within_s=20)
