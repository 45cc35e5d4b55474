"""Prepared sets: whole or not at all on disk, and refused when a byte differs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nbkit.data import Rows, chatterbot, convert, dedup, load_prepared, read, save_prepared, split, tickets
from nbkit.errors import DataError, StorageError

FROM = "made for a test, no licence needed"


def rows(count=3, start=0, size=1):
    """Rows that differ, of `size` characters an answer or so."""
    return read(
        [{"id": n, "prompt": f"Ünïcode {n}?", "completion": "x" * size + str(n)} for n in range(start, start + count)]
    )


def refusal(path):
    """The error that loading raises, with the folder cut from its paths."""
    with pytest.raises(DataError) as caught:
        load_prepared(path)
    return str(caught.value).replace(f"{path.parent}{os.sep}", "")


@pytest.fixture
def saved(tmp_path):
    """A small prepared set."""
    return save_prepared({"train": rows(), "test": rows(2, start=3)}, tmp_path / "mine", provenance=FROM)


class TestSaveAndLoad:
    def test_there_and_back(self, saved):
        """What was saved is what is loaded: splits, rows, format, provenance and fingerprint."""
        back = load_prepared(saved.path)
        assert saved == back
        assert ["train", "test"] == list(back)
        assert list(rows()) == list(back["train"])
        assert (FROM, "prompt-completion") == (back.provenance, back.format)

    def test_the_manifest_says_what_is_there(self, saved):
        """dataset.json holds format, columns, and for each split its file, count, hash and source."""
        manifest = json.loads((saved.path / "dataset.json").read_text())
        assert (1, 5, ["id", "prompt", "completion"]) == (manifest["schema"], manifest["rows"], manifest["columns"])
        assert saved.fingerprint == manifest["fingerprint"]
        assert {"file": "test.jsonl", "rows": 2, "sha256": saved.hashes["test"], "source": "list"} == manifest[
            "splits"
        ]["test"]
        assert manifest["made_by"].startswith("nbkit ")

    def test_the_fingerprint_is_of_the_data_alone(self, saved, tmp_path):
        """The same data has the same fingerprint in any folder and of any source; other data has another."""
        again = {name: Rows(list(saved[name]), saved[name].lines, "elsewhere") for name in saved}
        other = save_prepared(again, tmp_path / "other", provenance="someone else")
        assert saved.fingerprint == other.fingerprint
        fewer = save_prepared({"train": rows(), "test": rows(1, start=3)}, tmp_path / "fewer", provenance=FROM)
        renamed = save_prepared({"train": rows(), "held": rows(2, start=3)}, tmp_path / "renamed", provenance=FROM)
        assert 3 == len({saved.fingerprint, fewer.fingerprint, renamed.fingerprint})

    def test_prints_as_a_table_without_its_folder(self, saved):
        """The text names the set, its format, each split's rows and hash, and where the data is from."""
        text = repr(saved)
        assert f"mine: prompt-completion, fingerprint {saved.fingerprint[:12]}" == text.splitlines()[0]
        assert f"train     3  {saved.hashes['train'][:12]}" in text
        assert FROM == text.splitlines()[-1]
        assert str(saved.path.parent) not in text

    def test_a_split_as_a_dataset(self, saved):
        """A split becomes the datasets.Dataset that SFTTrainer takes."""
        pytest.importorskip("datasets")
        dataset = saved.dataset("train")
        assert (3, ["id", "prompt", "completion"]) == (dataset.num_rows, dataset.column_names)

    def test_an_unknown_split(self, saved):
        """A wrong split name is answered with those that exist."""
        with pytest.raises(DataError, match="has no split 'eval'") as caught:
            saved["eval"]
        assert "it has train, test" == caught.value.hint

    def test_saving_again_replaces(self, saved):
        """An earlier prepared set gives way to the new one; files of dropped splits are gone."""
        save_prepared({"train": rows(9)}, saved.path, provenance=FROM)
        assert 9 == len(load_prepared(saved.path)["train"])
        assert ["dataset.json", "train.jsonl"] == sorted(file.name for file in saved.path.iterdir())

    def test_secrets_are_not_kept(self, tmp_path):
        """A token in a source or in the provenance is hidden in dataset.json."""
        source = Rows(list(rows()), [1, 2, 3], "https://example.org/data.jsonl?token=abcdef0123456789")
        saved = save_prepared({"train": source}, tmp_path / "mine", provenance="by hf_abcdefghijklmnopqrstuvwx")
        text = (saved.path / "dataset.json").read_text()
        assert "abcdef" not in text
        assert 2 == text.count("***")


class TestRefusedToSave:
    @pytest.mark.parametrize(
        ("splits", "provenance", "message"),
        [
            ({}, FROM, "There are no splits to save."),
            ({"train": rows()}, "  ", "provenance is empty."),
            ({"../evil": rows()}, FROM, "'../evil' cannot name a split: it becomes a file name."),
            ({"train": rows()[:0]}, FROM, "list holds no rows."),
            ({"train": read([{"prompt": "a", "completion": ""}])}, FROM, "list, row 1: the answer is empty: it would"),
            ({"train": read([{"text": "a", "n": float("nan")}])}, FROM, "list, row 1: 'n' cannot be written as JSON"),
            (
                {"train": rows(), "test": read([{"text": "a"}])},
                FROM,
                "The splits differ in format: 'train' is prompt-completion, 'test' is text.",
            ),
        ],
    )
    def test_what_cannot_be_trained_on(self, tmp_path, splits, provenance, message):
        """Bad rows, odd names and a missing provenance are refused, and nothing is left on disk."""
        with pytest.raises(DataError) as caught:
            save_prepared(splits, tmp_path / "mine", provenance=provenance)
        assert caught.value.message.startswith(message)
        assert [] == list(tmp_path.iterdir())

    def test_a_folder_of_other_files_is_not_replaced(self, tmp_path):
        """A wrong path does not cost anyone their files."""
        folder = tmp_path / "home"
        folder.mkdir()
        (folder / "thesis.txt").write_text("years of work")
        with pytest.raises(DataError, match=r"home holds files and no dataset\.json") as caught:
            save_prepared({"train": rows()}, folder, provenance=FROM)
        assert f'"{folder / "prepared"}"' in caught.value.hint
        assert "years of work" == (folder / "thesis.txt").read_text()


class TestRefusedToLoad:
    def test_a_truncated_file(self, saved):
        """A split that lost its last line is named with both counts and both hashes."""
        file = saved.path / "train.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
        text = refusal(saved.path)
        assert text.startswith(f"mine{os.sep}train.jsonl is not the file that was saved: 2 rows and sha256 ")
        assert f"dataset.json says 3 rows and {saved.hashes['train'][:12]}." in text
        assert "save the set again" in text

    def test_one_changed_letter(self, saved):
        """The same number of rows with one other byte is noticed."""
        file = saved.path / "test.jsonl"
        file.write_text(file.read_text().replace("x3", "y3"))
        assert refusal(saved.path).startswith(f"mine{os.sep}test.jsonl is not the file that was saved: 2 rows and ")

    def test_a_missing_file(self, saved):
        """A split that is gone is named."""
        (saved.path / "test.jsonl").unlink()
        expected = f"mine{os.sep}test.jsonl is missing; dataset.json lists it with 2 rows."
        assert refusal(saved.path).startswith(expected)

    def test_a_wrong_count_in_the_manifest(self, saved):
        """A manifest whose count is not the file's is refused, though the hash is right."""
        file = saved.path / "dataset.json"
        file.write_text(file.read_text().replace('"rows": 2', '"rows": 7'))
        text = refusal(saved.path)
        assert text.startswith(f"mine{os.sep}test.jsonl holds 2 rows, dataset.json says 7.")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"schema": 1', '"schema": 2', "mine/dataset.json: schema 2; this nbkit ("),
            ("{", "", "mine/dataset.json is damaged: JSONDecodeError: "),
            ('"splits"', '"parts"', "mine/dataset.json is damaged: KeyError: 'splits'."),
            (
                '"test": {',
                '"../../etc/passwd": {',
                "mine/dataset.json: the entry of split '../../etc/passwd' is not as it was written.",
            ),
            (
                '"provenance": "',
                '"provenance": 3, "x": "',
                "mine/dataset.json: format, provenance and fingerprint must be",
            ),
            ('"fingerprint": "', '"fingerprint": "0', "mine/dataset.json was changed: its fingerprint is 0"),
        ],
    )
    def test_a_damaged_manifest(self, saved, old, new, message):
        """A manifest that is not as it was written is refused, and never leads to a file outside the folder."""
        file = saved.path / "dataset.json"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        assert refusal(saved.path).startswith(message)

    def test_no_such_set(self, tmp_path):
        """A wrong name is answered with the embedded sets; a folder without a manifest is told apart."""
        text = refusal(tmp_path / "mine")
        assert text.startswith("mine does not exist, so it has no dataset.json.")
        assert "embedded sets: tickets, chatterbot" in text
        (tmp_path / "mine").mkdir()
        assert refusal(tmp_path / "mine").startswith("mine is not a prepared set: it has no dataset.json.")


class TestEmbedded:
    def test_made_on_the_spot_as_the_notebook_makes_it(self, tmp_path, monkeypatch):
        """`tickets` and `chatterbot` are the same to the last byte, saved step by step or made by name."""
        (tmp_path / "a").mkdir()
        monkeypatch.chdir(tmp_path / "a")
        made = load_prepared("tickets")
        assert {"train": 2000, "seen": 200, "unseen": 200} == {name: len(made[name]) for name in made}
        by_hand = {name: read(part) for name, part in tickets.generate().items()}
        assert made.fingerprint == save_prepared(by_hand, tmp_path / "t", provenance=tickets.PROVENANCE).fingerprint

        junk = {"science-0019", "science-0021", "trivia-0014"}
        pairs = chatterbot().filter(lambda row: row["id"] not in junk)
        stripped = pairs.map(
            lambda row: {**row, "prompt": row["prompt"].strip(), "completion": row["completion"].strip()}
        )
        parts = split(convert(dedup(stripped)[0]), test_size=0.1, seed=0)
        by_hand = save_prepared(parts, tmp_path / "c", provenance=FROM)
        assert load_prepared("chatterbot").fingerprint == by_hand.fingerprint

    def test_the_saved_one_is_read(self, tmp_path, monkeypatch):
        """What stands under ./prepared/NAME is used, whoever saved it; it is made only when nothing is there."""
        monkeypatch.chdir(tmp_path)
        mine = save_prepared({"train": rows()}, "prepared/tickets", provenance=FROM)
        assert mine == load_prepared("tickets")

    def test_a_damaged_one_says_how_to_make_it_again(self, tmp_path, monkeypatch):
        """The embedded sets can be made again, so the fix is to remove the folder."""
        monkeypatch.chdir(tmp_path)
        save_prepared({"train": rows()}, "prepared/tickets", provenance=FROM)
        Path("prepared/tickets/train.jsonl").write_text("")
        with pytest.raises(DataError) as caught:
            load_prepared("tickets")
        assert 'rm -r prepared/tickets      then load_prepared("tickets") makes it again' == caught.value.hint


class TestFaults:
    CHILD = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from nbkit.data import Rows, save_prepared

        class Slow(Rows):
            def __iter__(self):
                for number, row in enumerate(super().__iter__()):
                    if number == 10_000 and any(Path().glob(".part-*")):  # half of it is on its way to the disk
                        print("writing", flush=True)
                        time.sleep(60)
                    yield row

        rows = [{"prompt": f"q{n}", "completion": "new"} for n in range(20_000)]
        save_prepared({"train": Slow(rows, list(range(20_000)), "x")}, "mine", provenance="test")
        """
    )

    def killed(self, folder):
        """Start the child in `folder` and kill it in the middle of its save."""
        root = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root)}
        with subprocess.Popen(
            [sys.executable, "-c", self.CHILD], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as child:
            assert "writing\n" == child.stdout.readline()
            written = sum(file.stat().st_size for file in folder.glob(".part-*/train.jsonl"))
            child.kill()
        assert (-signal.SIGKILL, True) == (child.returncode, written > 0)

    def test_killed_while_saving(self, tmp_path):
        """SIGKILL in the middle of a save leaves nothing under the final name."""
        self.killed(tmp_path)
        assert not (tmp_path / "mine").exists()
        assert 3 == len(save_prepared({"train": rows()}, tmp_path / "mine", provenance=FROM)["train"])

    def test_killed_while_replacing(self, saved):
        """SIGKILL while a set is replaced leaves the old one, whole."""
        self.killed(saved.path.parent)
        assert saved == load_prepared(saved.path)

    def test_a_full_disk(self, tmp_path):
        """A disk that fills up is said, nothing half-written stays, and an earlier set is as it was."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = shutil.which("mount")
        command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
        if mount is None or os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("a small disk can be mounted by root only")
        try:
            before = save_prepared({"train": rows()}, disk / "mine", provenance=FROM)
            with pytest.raises(StorageError, match=r"The disk is full: could not write .*mine") as caught:
                save_prepared({"train": rows(30, size=100_000)}, disk / "mine", provenance=FROM)
            assert "free space on that disk" in caught.value.hint
            assert before == load_prepared(disk / "mine")
            assert ["mine"] == [entry.name for entry in disk.iterdir()]
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_no_permission(self, tmp_path):
        """A folder that may not be written to is said, with whose it should be."""
        folder = tmp_path / "theirs"
        folder.mkdir(mode=0o555)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.raises(StorageError, match=r"No permission to write .*theirs/mine") as caught:
                save_prepared({"train": rows()}, folder / "mine", provenance=FROM)
        finally:
            os.seteuid(before)
        assert "choose a folder you own" in caught.value.hint
        assert [] == list(folder.iterdir())
