"""Shows that each test of this folder fails when what it guards is removed: `python -m tests.browser.mutations [WORD...]`.

In a copy of the tree one line is broken, one test is run there, and it must fail; then the line is mended. With words,
only the tests whose names hold one of them. About a minute each, most of it spent waiting for what does not come.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from nbkit.display import Table
from tools.guards import ROOT, tree_files

LIMIT_S = 400


class Mutation(NamedTuple):
    """One edit that must make one test fail.

    Attributes:
        test: Its file and name under tests/browser.
        removed: What works no more.
        path: The file that is edited, from the tree's root.
        old: Text that stands there exactly once.
        new: What takes its place.
    """

    test: str
    removed: str
    path: str
    old: str
    new: str = ""


_WIDGETS = "nbkit/widgets/"
_JS, _CSS, _DASHBOARD, _LIVE = (
    _WIDGETS + name for name in ("dashboard.js", "dashboard.css", "dashboard.py", "live.py")
)
MUTATIONS = (
    Mutation(
        "test_fallback.py::test_html",
        "NBKIT_DISPLAY=html",
        "nbkit/display.py",
        '{"widget", "html", "text"}',
        '{"text"}',
    ),
    Mutation(
        "test_fallback.py::test_text",
        "text in a notebook",
        _LIVE,
        'if how == "text" or not in_notebook():',
        "if not in_notebook():",
    ),
    Mutation(
        "test_frozen.py::test_the_saved_notebook_shows_the_result",
        "the picture at the end",
        _LIVE,
        "        handle.update(result)\n        dashboard.freeze(result)\n",
    ),
    Mutation(
        "test_heap.py::test_heap_over_1500_refreshes",
        "letting messages go",
        _JS,
        "    this.heard = Date.now();\n",
        "    this.heard = Date.now();\n    (this.kept ||= []).push(Array.from({length: 300}, Math.random));\n",
    ),
    Mutation(
        "test_kernel.py::test_nothing_is_lost_in_the_page",
        "the relay under a kernel",
        "nbkit/remote/provisioner.py",
        "carrier = self._carrier(self._box)",
        "carrier = self._box.session",
    ),
    Mutation(
        "test_kernel.py::test_training_there_is_watched_and_stopped_from_here",
        "making a lost link again",
        "nbkit/ssh/session.py",
        "            if self._holders and not self._closed.is_set() and self.error is None:",
        "            if False:",
    ),
    Mutation(
        "test_kernel.py::test_is_chosen_in_notebook_7",
        "the relay under a kernel",
        "nbkit/remote/provisioner.py",
        "carrier = self._carrier(self._box)",
        "carrier = self._box.session",
    ),
    Mutation("test_live.py::test_draws_curves_and_facts", "drawing", _JS, "if (this.seen) this.draw();"),
    Mutation(
        "test_live.py::test_hover_reads_a_step",
        "reading at the pointer",
        _JS,
        '    canvas.addEventListener("pointermove", (event) => this.point(this.stepAt(canvas, event.offsetX)));\n',
    ),
    Mutation(
        "test_look.py::test_dark_theme",
        "the theme's colour of text",
        _CSS,
        "color: var(--nb-ink); background: var(--nb-paper);",
        "color: #222222; background: var(--nb-paper);",
    ),
    Mutation("test_look.py::test_dark_theme", "the theme's colour of axes", _JS, "ink: style.color", 'ink: "#222222"'),
    Mutation(
        "test_look.py::test_narrow_page",
        "one column where it is narrow",
        _CSS,
        "@container (max-width: 560px)",
        "@container (max-width: 1px)",
    ),
    Mutation(
        "test_other_pages.py::test_notebook_7", "the click's message", _JS, "    this.model.send({ kind: word });\n"
    ),
    Mutation(
        "test_other_pages.py::test_colab_kernel", "hearing pages", _DASHBOARD, "        self.on_msg(self._heard)\n"
    ),
    Mutation(
        "test_other_pages.py::test_watch_from_a_second_notebook",
        "finding the newest run",
        "nbkit/training/run.py",
        'root.glob("*/status.json")',
        'root.glob("*/status.none")',
    ),
    Mutation(
        "test_other_pages.py::test_a_restarted_kernel_finds_a_detached_run",
        "a session of its own",
        "nbkit/training/detach.py",
        "start_new_session=True",
        "start_new_session=False",
    ),
    Mutation(
        "test_reload.py::test_in_a_current_kernel",
        "rows for a page that connects",
        "nbkit/widgets/feed.py",
        '"rows": list(self.series.rows)',
        '"rows": []',
    ),
    Mutation(
        "test_reload.py::test_in_a_current_kernel",
        "the result in a page that was reloaded",
        _JS,
        "if (message.frozen) replace(message.frozen, model.widget_manager);",
    ),
    Mutation(
        "test_reload.py::test_in_a_colab_kernel",
        "rows for a page that connects",
        "nbkit/widgets/feed.py",
        '"rows": list(self.series.rows)',
        '"rows": []',
    ),
    Mutation(
        "test_reload.py::test_opened_again_after_the_end",
        "the widget that waits for late pages",
        _LIVE,
        "dashboard.freeze(result)",
        "dashboard.close()",
    ),
    Mutation(
        "test_remote_run.py::test_live_through_a_lost_link_and_stopped_from_here",
        "waiting for the link with a click",
        "nbkit/remote/asking.py",
        "if not self._seen() or self._work.box.session.error is not None:",
        "if True:",
    ),
    Mutation(
        "test_remote_run.py::test_live_through_a_lost_link_and_stopped_from_here",
        "making the link again",
        "nbkit/remote/work.py",
        "    box.session.hold(changed)\n",
    ),
    Mutation(
        "test_remote_run.py::test_live_through_a_lost_link_and_stopped_from_here",
        "the result of a run on a box",
        "nbkit/widgets/summary.py",
        'return f"nbkit pull {feed.run.named}"',
        "return None",
    ),
    Mutation(
        "test_stop.py::test_stop_ends_training_and_keeps_the_adapter",
        "Stop",
        _DASHBOARD,
        '"stop": lambda run: run.stop()',
        '"stop": lambda run: None',
    ),
    Mutation(
        "test_stop.py::test_pause_holds_and_resume_goes_on",
        "Resume",
        _DASHBOARD,
        '"resume": lambda run: run.unpause()',
        '"resume": lambda run: None',
    ),
)


def caught(mutation: Mutation, tree: Path) -> tuple[bool, str]:
    """Whether the test failed in `tree` with the edit, and its last words.

    Raises: ValueError when the text to edit does not stand there exactly once.
    """
    file = tree / mutation.path
    whole = file.read_text(encoding="utf-8")
    if whole.count(mutation.old) != 1:
        raise ValueError(f"{mutation.path} holds {mutation.old!r} {whole.count(mutation.old)} times, not once")
    file.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=short", f"tests/browser/{mutation.test}"],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, timeout=LIMIT_S,
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    finally:
        file.write_text(whole, encoding="utf-8")
    said = re.findall(r"^E +(.+)", done.stdout, re.MULTILINE) or done.stdout.splitlines()[-1:]
    return "1 failed" in done.stdout and " error" not in done.stdout.splitlines()[-1], said[0][:100] if said else ""


def main(words: list[str]) -> int:
    """Try each mutation; returns 1 when a test passed in spite of it."""
    chosen = [each for each in MUTATIONS if not words or any(word in each.test for word in words)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="nbkit-mutations-", ignore_cleanup_errors=True) as folder:
        for path in tree_files():
            target = Path(folder) / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        for each in chosen:
            found, said = caught(each, Path(folder))
            rows.append((each.test.partition("::")[2], each.removed, "fails" if found else "PASSES", said))
            print(*rows[-1], sep=" · ", flush=True)
    print(Table(["test", "removed", "then it", "first words of the failure"], rows))
    return int(any(row[2] != "fails" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
