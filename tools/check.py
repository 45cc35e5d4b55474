"""Everything that must hold before a change lands: lint, every test, the notebooks. What `make test` and CI run.

    python -m tools.check              all of it
    python -m tools.check lint         ruff and mypy alone
    python -m tools.check unit         the tests that need no box, no browser and no training

Each stage runs even if one before it failed, so that one run tells all. At the end: what was skipped, by name and
reason, the time of each stage, what failed by name, and one line with the counts. A stage that outlives its limit is
ended and has failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tools import stage, system
from tools.guards import ROOT

LINT = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "--quiet", "."],
    "mypy": ["mypy"],
    "notebook lint": ["tools.notebooks", "check"],
}


# Two to four times what they take alone.
LIMIT_S = {"tests": 40 * 60, "tests of boxes": 40 * 60, "browser tests": 18 * 60, "notebooks": 15 * 60}
_LINT_LIMIT_S = 3 * 60
_SHOWN = 200  # characters of why a test failed
# They mostly wait, for cuts and servers, so they run beside the others, which mostly compute.
BOXES = ("tests/test_ssh_*.py", "tests/test_remote_*.py", "tests/test_cli_box.py", "tests/test_cli_tunnel.py",
         "tests/test_cli_work.py")  # fmt: skip
_HERE = ["--ignore=tests/browser", *(f"--ignore-glob={ROOT / pattern}" for pattern in BOXES)]
ALONE = {"lint": LINT, "unit": {"tests": ["pytest", "-q", "-m", "not train and not gpu", *_HERE]}}


def run(
    title: str,
    words: list[str],
    times: dict[str, float],
    output: IO[bytes] | None = None,
    stop: threading.Event | None = None,
) -> bool:
    """Run one stage as `python -m`, its output passed through or into a file; True if it ended well."""
    if output is None:
        print(f"\n== {title}", flush=True)
    start = time.monotonic()
    limit_s = LIMIT_S.get(title, _LINT_LIMIT_S)
    code = stage.run([sys.executable, "-m", *words], cwd=ROOT, limit_s=limit_s, output=output, stop=stop)
    times[title] = time.monotonic() - start
    if code != 0:
        ended = f"not done after {clock(limit_s)}, and was ended" if code is None else f"exit {code}"
        print(f"== {title} FAILED ({ended})", flush=True)
    return code == 0


@contextmanager
def beside(title: str, words: list[str], times: dict[str, float], well: dict[str, bool]) -> Iterator[None]:
    """Run one stage while the block runs; its output follows when both are over."""
    stop = threading.Event()
    with tempfile.TemporaryFile() as output:

        def work() -> None:
            well[title] = run(title, words, times, output, stop)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        except BaseException:
            stop.set()
            raise
        finally:
            thread.join()
            output.seek(0)
            print(f"\n== {title}\n{output.read().decode(errors='replace')}", flush=True)


def read(report: Path) -> tuple[Counter[str], list[str], list[str]]:
    """How many passed, failed and were skipped, and a line for each that was skipped or failed, from pytest's report."""
    counts: Counter[str] = Counter()
    skipped: list[str] = []
    failed: list[str] = []
    if not report.exists():
        return counts, skipped, failed
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by the pytest we just ran
        name = f"{case.get('classname')}::{case.get('name')}"
        for kind, lines in (("skipped", skipped), ("failure", failed), ("error", failed)):
            found = case.find(kind)
            if found is not None:
                counts["skipped" if lines is skipped else "failed"] += 1
                lines.append(f"{name}: {found.get('message', '').strip().partition(chr(10))[0][:_SHOWN]}")
                break
        else:
            counts["passed"] += 1
    return counts, skipped, failed


def clock(seconds: float) -> str:
    """`45 s` or `3 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def check(since: float) -> int:
    """All stages; returns the exit code. `since` is when the person began to wait, in seconds of the epoch."""
    times: dict[str, float] = {}
    counts: Counter[str] = Counter()
    skipped, broken = system.provide(), []
    with tempfile.TemporaryDirectory(prefix="nbkit-check-") as folder:
        # The browser's tests run by themselves: Playwright keeps an event loop in the thread that uses it.
        reports = {title: Path(folder) / f"{title}.xml" for title in LIMIT_S}
        boxes = sorted(str(path.relative_to(ROOT)) for pattern in BOXES for path in ROOT.glob(pattern))
        stages = LINT | {
            "tests": ["pytest", "-q", "--durations=10", *_HERE],
            "tests of boxes": ["pytest", "-q", "--durations=10", *boxes],
            "browser tests": ["pytest", "-q", "--durations=5", "tests/browser"],
            "notebooks": ["tools.notebooks", "smoke"],
        }
        for title, report_file in reports.items():
            stages[title] = [*stages[title], f"--junitxml={report_file}"]
        well: dict[str, bool] = {}
        aside = "tests of boxes"
        for title, words in stages.items():
            if title == "tests":
                with beside(aside, stages[aside], times, well):
                    well[title] = run(title, words, times)
            elif title != aside:
                well[title] = run(title, words, times)
        for report_file in reports.values():
            found, left_out, wrong = read(report_file)
            counts.update(found)
            skipped += left_out
            broken += wrong
    print(f"\n== {counts['skipped']} skipped")
    print(*(f"  {line}" for line in skipped), sep="\n")
    print("\n== time: " + ", ".join(f"{title} {clock(seconds)}" for title, seconds in times.items()))
    print(f"   from the start of the command, setup included: {clock(time.time() - since)}")
    failed = [title for title, passed in well.items() if not passed]
    if broken:
        print("\n== failed", *(f"  {line}" for line in broken), sep="\n")
    print("\n" + (f"FAILED: {', '.join(failed)}" if failed else "all stages passed"))
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if failed else 0


def main() -> int:
    """Run the stages asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", choices=list(ALONE))
    parser.add_argument("--since", type=float, default=time.time())
    options = parser.parse_args()
    if options.only:
        times: dict[str, float] = {}
        well = [run(title, words, times) for title, words in ALONE[options.only].items()]
        return 0 if all(well) else 1
    return check(options.since)


if __name__ == "__main__":
    sys.exit(main())
