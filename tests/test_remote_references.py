"""Models and data by reference: a hub on this machine, a real sshd, the hub's own client as the judge of the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import nbkit.cli
from nbkit.errors import ModelError, RemoteCommandError, UnknownReferenceError, UnreachableError
from nbkit.remote import hub, program
from nbkit.remote.references import HubReference, StoreReference, parse
from tests import boxes, hub_server, sshd
from tests.hub_server import COMMIT, git_sha1, sha256

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB: three of the program's reads
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "sub folder/notes ü.txt": b"notes",
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\x80pickle" * 400,
    "tf_model.h5": b"\x89HDF" * 400,
    "README.md": b"read me",
}
KEPT = {"config.json", "sub folder/notes ü.txt", "empty.txt", "model.safetensors", "README.md"}
REPO = HubReference("models", "org/tiny")
NO_HUB = "http://127.0.0.1:9"  # the discard port: refused at once


box = boxes.box


@pytest.fixture
def served(monkeypatch):
    """A hub that holds org/tiny, and is the hub of this process."""
    with hub_server.serving(
        **{"models/org/tiny": dict(FILES), "datasets/org/rows": {"a.bin": b"1", "b.pkl": b"2"}}
    ) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", "/nonexistent")
        yield served


def snapshot(fetched: hub.Fetched) -> dict[str, bytes]:
    """What stands in the snapshot, by path; links are followed."""
    root = Path(fetched.folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class TestParse:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("hf://org/model", HubReference("models", "org/model")),
            ("hf://gpt2", HubReference("models", "gpt2")),
            (f"hf://org/model@{COMMIT}", HubReference("models", "org/model", COMMIT)),
            ("hf://org/model@refs/pr/3", HubReference("models", "org/model", "refs/pr/3")),
            ("hf://org/model@v1%2Fx/sub/a.txt", HubReference("models", "org/model", "v1/x", "sub/a.txt")),
            ("hf://datasets/org/rows@main/data", HubReference("datasets", "org/rows", "main", "data")),
            ("s3://bucket/a b/c/", StoreReference("s3", "bucket/a b/c")),
            ("file:///mnt/nfs/model", StoreReference("file", "/mnt/nfs/model")),
        ],
    )
    def test_reads(self, text, expected):
        """Repository, revision and path of a hub reference; scheme and path of the others."""
        assert expected == parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            "hf://", "hf://org/../x", "hf://-rf", "hf://org/mo del", "hf://org/a--b", "hf://a/b/c@main", "hf://org/m@-x",
            "hf://org/m@../../x", "hf://org/m\n", "s3://", "file://relative", "ftp://host/x", "org/model", "s3://b/../c",
        ],
    )  # fmt: skip
    def test_refuses(self, text):
        """What names nothing, or would lead elsewhere, is a usage error before anything is asked of anybody."""
        with pytest.raises(UnknownReferenceError) as caught:
            parse(text)
        assert 2 == caught.value.exit_code


class TestPush:
    def test_from_pretrained_would_find_it(self, box, served, tmp_path):
        """The hub's own client, offline, finds every file in the cache, by the branch's name and by the commit."""
        fetched = hub.push(box, REPO, str(tmp_path))
        assert {name: FILES[name] for name in KEPT} == snapshot(fetched)
        code = (
            "import json, sys; from huggingface_hub import snapshot_download, try_to_load_from_cache as find\n"
            "print(json.dumps([snapshot_download('org/tiny', cache_dir=sys.argv[1], local_files_only=True), "
            "find('org/tiny', 'model.safetensors', cache_dir=sys.argv[1]), "
            f"find('org/tiny', 'config.json', cache_dir=sys.argv[1], revision='{COMMIT}')]))"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True)
        folder = fetched.folder
        assert [folder, f"{folder}/model.safetensors", f"{folder}/config.json"] == json.loads(done.stdout)

    def test_is_the_layout_that_the_client_makes(self, box, served, tmp_path):
        """Blobs, refs and snapshot links are those of a download by the hub's own client."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        hub.push(box, REPO, str(ours))
        code = (
            "import sys; from huggingface_hub import snapshot_download\n"
            "snapshot_download('org/tiny', cache_dir=sys.argv[1], ignore_patterns=['*.bin', '*.h5'])"
        )
        environment = {"HF_ENDPOINT": served.endpoint, "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", code, theirs], check=True, capture_output=True, env=environment)

        def layout(cache: Path) -> dict[str, str]:
            home = cache / "models--org--tiny"
            found = [path for part in ("blobs", "refs", "snapshots") for path in (home / part).rglob("*")]
            return {str(p.relative_to(home)): str(p.readlink()) if p.is_symlink() else sha256(p.read_bytes())
                    for p in found if not p.is_dir()}  # fmt: skip

        assert layout(theirs) == layout(ours)

    def test_says_what_it_did(self, box, served, tmp_path):
        """A branch is resolved to its commit and said; so is what was left out."""
        fetched = hub.push(box, REPO, str(tmp_path))
        assert (COMMIT, ("pytorch_model.bin", "tf_model.h5"), "on the box") == (
            fetched.commit, fetched.left_out, fetched.downloaded)  # fmt: skip
        assert {
            "model.safetensors": sha256(WEIGHTS),
            "README.md": git_sha1(b"read me"),
        }.items() <= fetched.files.items()
        assert f"Pin:  hf://org/tiny@{COMMIT}      (main may move)" in str(fetched)
        assert "Left out: pytorch_model.bin, tf_model.h5" in str(fetched)

    def test_a_pinned_push_writes_no_branch(self, box, served, tmp_path):
        """A commit stays a commit: no ref says that it is main."""
        fetched = hub.push(box, parse(f"hf://org/tiny@{COMMIT}"), str(tmp_path))
        assert not (tmp_path / "models--org--tiny" / "refs").exists()
        assert f'Use:  from_pretrained("org/tiny", revision="{COMMIT}")' in str(fetched)

    def test_what_is_there_is_not_fetched_again(self, box, served, tmp_path):
        """A second push fetches nothing."""
        hub.push(box, REPO, str(tmp_path))
        served.asked.clear()
        assert 0 == hub.push(box, REPO, str(tmp_path)).bytes
        assert [] == [path for _, path, _ in served.asked if not path.startswith("/api/")]

    def test_damage_of_what_is_there_is_mended(self, box, served, tmp_path):
        """A blob with one bit wrong in it is found and fetched anew; the hub's client would have served it."""
        fetched = hub.push(box, REPO, str(tmp_path))
        blob = (Path(fetched.folder) / "model.safetensors").resolve()
        blob.write_bytes(b"\x01" + blob.read_bytes()[1:])
        assert len(WEIGHTS) == hub.push(box, REPO, str(tmp_path)).bytes
        assert WEIGHTS == blob.read_bytes()

    def test_one_flipped_bit_is_fetched_again(self, box, served, tmp_path):
        """A download whose content is wrong once is made again, from its start."""
        served.flip["model.safetensors"] = 1
        assert WEIGHTS == snapshot(hub.push(box, REPO, str(tmp_path)))["model.safetensors"]
        assert [None, None] == [
            headers.get("Range") for headers in served.gets("/cdn/models/org/tiny/model.safetensors")
        ]

    @pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
    def test_a_bit_that_stays_flipped_is_refused(self, box, served, tmp_path, name):
        """Content that is wrong twice is refused by name, for both kinds of digest; nothing of it stays."""
        served.flip[name] = 9
        with pytest.raises(RemoteCommandError, match=f"{name} is twice not what the hub says it is"):
            hub.push(box, REPO, str(tmp_path))
        digest = sha256(WEIGHTS) if name == "model.safetensors" else git_sha1(FILES[name])
        assert [] == list((tmp_path / "models--org--tiny" / "blobs").glob(f"{digest}*"))
        assert not (tmp_path / "models--org--tiny" / "snapshots").exists()

    def test_goes_on_where_it_stopped(self, box, served, tmp_path):
        """A download that breaks off goes on by Range, and the whole has the right digest."""
        served.cut["model.safetensors"] = 2_000_000
        assert WEIGHTS == snapshot(hub.push(box, REPO, str(tmp_path)))["model.safetensors"]
        ranges = [headers.get("Range") for headers in served.gets("/cdn/models/org/tiny/model.safetensors")]
        assert [None, "bytes=2000000-"] == ranges

    def test_a_server_without_ranges_starts_anew(self, box, served, tmp_path):
        """Where the server knows no Range, what was there is thrown away, not added to."""
        served.cut["model.safetensors"] = 2_000_000
        served.ranges = False
        with pytest.raises(RemoteCommandError, match=r"model.safetensors broke off 5 times"):
            hub.push(box, REPO, str(tmp_path))
        served.cut.clear()
        assert WEIGHTS == snapshot(hub.push(box, REPO, str(tmp_path)))["model.safetensors"]

    def test_pickles_only_are_refused(self, box, served, tmp_path):
        """Weights that are a pickle come only when they are asked for."""
        del served.repos["models/org/tiny"]["model.safetensors"]
        with pytest.raises(RemoteCommandError, match=r"has pickles only .pytorch_model.bin.") as caught:
            hub.push(box, REPO, str(tmp_path))
        assert "--allow-pickle" in caught.value.hint
        assert "pytorch_model.bin" in hub.push(box, REPO, str(tmp_path), allow_pickle=True).files

    def test_data_sets(self, box, served, tmp_path):
        """A data set goes where `load_dataset` looks; its .bin is data, its pickle is not brought."""
        fetched = hub.push(box, parse("hf://datasets/org/rows"), str(tmp_path))
        assert {"a.bin": b"1"} == snapshot(fetched)
        assert f"Pin:  hf://datasets/org/rows@{COMMIT}" in str(fetched)
        assert Path(fetched.folder).is_relative_to(tmp_path / "datasets--org--rows")

    def test_one_file(self, box, served, tmp_path):
        """A path below the revision brings that alone."""
        assert {"config.json"} == set(snapshot(hub.push(box, parse("hf://org/tiny@main/config.json"), str(tmp_path))))

    @pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a//b", "a/./b"])
    def test_a_name_that_leaves_the_cache_is_refused(self, box, served, tmp_path, name):
        """No file name that the hub tells leads out of the snapshot."""
        served.names["README.md"] = name
        with pytest.raises(RemoteCommandError, match="file name that leaves its folder"):
            hub.push(box, REPO, str(tmp_path))

    def test_unknown_repository(self, box, served, tmp_path):
        """A name that the hub does not have is an error with the hub's own words."""
        with pytest.raises(RemoteCommandError, match=r"The hub has no .*HTTP 404, Repository not found"):
            hub.push(box, parse("hf://org/other"), str(tmp_path))


class TestToken:
    def test_goes_over_only_when_asked_for(self, box, served, tmp_path, monkeypatch):
        """An open repository is fetched without the token; a gated one with it, and the download host never sees it."""
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        hub.push(box, REPO, str(tmp_path / "open"))
        assert [] == [path for _, path, headers in served.asked if "Authorization" in headers]
        served.token = "hf_secretsecretsecret"
        assert KEPT == set(snapshot(hub.push(box, REPO, str(tmp_path / "gated"))))
        assert [] == [
            path for _, path, headers in served.asked if path.startswith("/cdn/") and "Authorization" in headers
        ]

    @pytest.mark.parametrize(
        ("secret", "said"), [("", "no token is known here"), ("hf_wrong", "does not let your token in")]
    )
    def test_refused(self, box, served, tmp_path, monkeypatch, secret, said):
        """Without the right token the error says which of the two it is, and what to do; never the token."""
        served.token = "hf_right"
        monkeypatch.setenv("HF_TOKEN", secret)
        with pytest.raises(ModelError, match=said) as caught:
            hub.push(box, REPO, str(tmp_path))
        assert "hf auth login" in caught.value.hint
        assert "hf_wrong" not in str(caught.value)


class TestThroughHere:
    @pytest.fixture
    def cut_off(self, box, served, monkeypatch):
        """The box has no way to the hub."""
        follow = program.follow

        def elsewhere(session, source, request, tell, *, python):
            return follow(session, source, {**request, "endpoint": NO_HUB}, tell, python=python)

        monkeypatch.setattr(program, "follow", elsewhere)

    def test_downloads_here_and_sends(self, box, cut_off, tmp_path):
        """A box without a network gets the same snapshot, checked there once more."""
        fetched = hub.push(box, REPO, str(tmp_path))
        assert ("here", {name: FILES[name] for name in KEPT}) == (fetched.downloaded, snapshot(fetched))

    def test_sends_only_what_is_not_there(self, box, served, cut_off, tmp_path, monkeypatch):
        """Blobs that the box has are not sent again."""
        hub.push(box, REPO, str(tmp_path))
        monkeypatch.setattr(hub, "send", None)
        assert KEPT == set(snapshot(hub.push(box, REPO, str(tmp_path))))

    def test_neither_reaches_the_hub(self, box, monkeypatch, tmp_path):
        """Both reasons are told."""
        monkeypatch.setenv("HF_ENDPOINT", NO_HUB)
        with pytest.raises(UnreachableError, match=r"Neither box .*refused.* nor this machine .*refused"):
            hub.push(box, REPO, str(tmp_path))

    def test_a_plain_address_is_refused(self, box, monkeypatch, tmp_path):
        """A hub that is not https, on another machine, is refused before it is asked."""
        monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
        with pytest.raises(RemoteCommandError, match="is not https"):
            hub.push(box, REPO, str(tmp_path))


class TestCommand:
    def run(self, server: sshd.Sshd, *words: str) -> Result:
        return CliRunner().invoke(nbkit.cli.main, ["push", *words, "-F", str(server.config)])

    def test_push(self, server, served, tmp_path):
        """`nbkit push hf://...` prints what came and how to pin it; with --json a script reads it."""
        said = self.run(server, "hf://org/tiny", f"box:{tmp_path}")
        assert (0, True) == (said.exit_code, f"Pin:  hf://org/tiny@{COMMIT}" in said.stdout)
        told = json.loads(self.run(server, f"hf://org/tiny@{COMMIT}", f"box:{tmp_path}", "--json").stdout)
        assert (COMMIT, 0, f"hf://org/tiny@{COMMIT}") == (told["commit"], told["bytes"], told["reference"])

    def test_a_mount(self, server, tmp_path):
        """`nbkit push file:///...` copies on the box."""
        (tmp_path / "a").write_bytes(b"a")
        assert 0 == self.run(server, f"file://{tmp_path}/a", f"box:{tmp_path}/into").exit_code
        assert b"a" == (tmp_path / "into" / "a").read_bytes()

    @pytest.mark.parametrize("sources", [["hf://org/tiny", "other"], ["ftp://host/x"], ["hf://"]])
    def test_wrong_usage(self, server, sources):
        """Two sources with a reference among them, and what is no reference, are usage errors."""
        assert 2 == self.run(server, *sources, "box:").exit_code

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("hf://org/tiny", "box:", "--dry-run"), "--dry-run is for files and folders of this machine"),
            (("hf://org/tiny", "box:", "--links", "copy"), "--links is for files and folders of this machine"),
            (("data.jsonl", "box:", "--allow-pickle"), "--allow-pickle is for hf:// references"),
        ],
    )
    def test_an_option_that_would_do_nothing(self, server, words, said):
        """An option that has no meaning for what is pushed is refused, not ignored: a dry run never writes."""
        done = self.run(server, *words)
        assert (2, True) == (done.exit_code, said in done.output)
