"""One way to fail, in a terminal, a notebook and JSON."""

from __future__ import annotations

import pytest

from nbkit.errors import MissingPackageError, NbkitError, RunError, require


class TestNbkitError:
    def test_text_holds_message_and_fix(self):
        """A person reads what happened, then what to paste."""
        assert str(NbkitError("Disk full.", hint="rm x")) == "Disk full.\n  Fix:  rm x"

    def test_without_hint_is_one_line(self):
        """No empty fix is printed."""
        assert str(NbkitError("Disk full.")) == "Disk full."

    def test_as_dict_is_what_json_prints(self):
        """A script gets the same facts under names."""
        expected = {"error": "RunError", "message": "m", "hint": "h", "exit_code": 3}
        assert expected == RunError("m", hint="h", exit_code=3).as_dict()

    def test_notebook_shows_no_traceback_unless_asked(self, monkeypatch):
        """IPython gets the text; NBKIT_DEBUG=1 brings the traceback back."""
        monkeypatch.delenv("NBKIT_DEBUG", raising=False)
        error = NbkitError("Disk full.", hint="rm x")
        assert error._render_traceback_()[0] == "Error: Disk full.\n  Fix:  rm x"
        monkeypatch.setenv("NBKIT_DEBUG", "1")
        assert "NbkitError" in "".join(error._render_traceback_())

    def test_a_real_ipython_shell_uses_it(self):
        """In a real IPython shell a raised NbkitError prints its text and not our files."""
        import subprocess
        import sys

        code = "from nbkit.errors import NbkitError; raise NbkitError('Disk full.', hint='rm x')"
        done = subprocess.run([sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", code],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert "Error: Disk full." in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


class TestRequire:
    def test_names_the_extra(self):
        """An absent package is named, with the extra that holds it."""
        with pytest.raises(
            MissingPackageError, match=r"no_such_module is not installed; this needs nbkit's 'train'"
        ) as e:
            require("json", "no_such_module", extra="train")
        assert 'pip install "nbkit-llm[train]"' in e.value.hint

    def test_is_silent_when_all_is_there(self):
        """Installed packages pass."""
        require("json", "pathlib", extra="train")
