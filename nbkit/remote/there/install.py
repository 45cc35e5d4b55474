"""Make an environment of exactly what the request locks. Runs as a job: its lines go to the log, its result to a file.

It goes on from whatever an earlier one left: packages are installed a few at a time, those cut off in the middle again,
and the marker that says the environment is whole is written last.
"""

from __future__ import annotations

import base64
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

AT_ONCE = 10
BEAT_S = 30.0
# The last is what pip says where a constraints file names torch as well.
NO_BUILD = ("No matching distribution found", "Could not find a version", "ResolutionImpossible")
INDEX = "https://download.pytorch.org/whl/"
_BEGAN = time.monotonic()


class SetupError(Exception):
    """What went wrong, and what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def say(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:5.0f} s  {text}", flush=True)


def run(title: str, command: list[str]) -> tuple[int, str]:
    """Run one stage, with a line now and then while it lasts; its exit status and what it said."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            say(f"{title} ...")

    threading.Thread(target=beat, daemon=True).start()
    said = process.communicate()[0].decode("utf-8", "replace")
    over.set()
    return process.returncode, said


def must(title: str, command: list[str]) -> None:
    status, said = run(title, command)
    if status:
        raise failure(title, said)


def failure(title: str, said: str) -> SetupError:
    """pip's own reason, with what to do about it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["it said nothing"]
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return SetupError(f"The disk became full while installing {title}",
                          "free some space there, or choose a folder on a larger disk: --path; then run it again")  # fmt: skip
    hint = "look at the log there, mend it and run the same command again: it goes on from here"
    if "NewConnectionError" in said or "ConnectTimeout" in said or "Temporary failure in name resolution" in said:
        hint = (
            "does the box reach a package index? Behind a proxy set HTTPS_PROXY, with a mirror pip's index-url, there"
        )
    return SetupError(f"Installing {title} failed: {errors[0][:300]}", hint)


def make_env(env: str) -> str:
    """The environment's Python; the environment is made where its Python or pip does not run."""
    python = os.path.join(env, "bin", "python")
    os.makedirs(env, exist_ok=True)
    open(os.path.join(env, "nbkit-setup.part"), "w").close()  # ours from here on
    if os.path.exists(python) and run("pip", [python, "-m", "pip", "--version"])[0] == 0:
        return python
    say(f"making {env} with Python {sys.version.split()[0]}")
    must("the environment", [sys.executable, "-m", "venv", env])
    return python


def forget_half_installed(env: str) -> None:
    """Drop what was cut off: pip writes INSTALLER after a package's files, and sets replaced ones aside with a ~."""
    site = os.path.join(env, "lib", "python*", "site-packages")
    halves = [info for info in glob.glob(os.path.join(site, "*.dist-info"))
              if not os.path.exists(os.path.join(info, "INSTALLER"))]  # fmt: skip
    for leftover in [*halves, *glob.glob(os.path.join(site, "~*"))]:
        say(f"installing again what was cut off: {os.path.basename(leftover)}")
        shutil.rmtree(leftover, ignore_errors=True)


def missing(env: str, pins: list[list[str]]) -> list[list[str]]:
    """The pins that are not installed yet, so that a setup that is taken up again soon is where it was."""
    records = glob.glob(os.path.join(env, "lib", "python*", "site-packages", "*.dist-info"))
    there = {os.path.basename(record)[: -len(".dist-info")].replace("_", "-").lower() for record in records}
    left = [pin for pin in pins if pin[1].split()[0].replace("==", "-").replace("_", "-").lower() not in there]
    if len(left) < len(pins):
        say(f"{len(pins) - len(left)} of {len(pins)} packages are there already")
    return left


def install(request: dict[str, Any]) -> dict[str, Any]:
    env, marker_path = request["env"], os.path.join(request["env"], "nbkit-setup.json")
    if os.path.exists(marker_path):
        os.remove(marker_path)
    python = make_env(env)
    forget_half_installed(env)
    pins = missing(env, request["pins"])
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        wanted = os.path.join(scratch, "lock.txt")
        for first in range(0, len(pins), AT_ONCE):
            some = pins[first : first + AT_ONCE]
            with open(wanted, "w") as file:
                file.write("".join(text for _, text in some))
            must(", ".join(name for name, _ in some), [*pip, "--no-deps", "--require-hashes", "-r", wanted])
            say(f"{min(first + AT_ONCE, len(pins))} of {len(pins)} packages")
        build = torch(pip, request["torch"], request["builds"]) if request["torch"] else None
        wheel = os.path.join(scratch, request["wheel"]["name"])
        with open(wheel, "wb") as file:
            file.write(base64.b64decode(request["wheel"]["content"]))
        must("nbkit", [*pip, "--no-deps", "--force-reinstall", wheel])
        say("nbkit itself")
    found = tried(python, request["imports"])
    marker = {"fingerprint": request["fingerprint"], "python": python, "build": build, **found}
    staged = os.path.join(env, "nbkit-setup.part")
    with open(staged, "w") as file:
        json.dump(marker, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, marker_path)
    say("done")
    return marker


def torch(pip: list[str], pin: str, builds: list[str]) -> str:
    """Install the first build that there is; its name."""
    said = ""
    for build in builds:
        say(f"torch, build {build}: some hundred MB" + ("" if build == "cpu" else " to some GB"))
        exact = pin if sys.platform == "darwin" else f"{pin}+{build}"
        status, said = run(f"torch {build}", [*pip, "--extra-index-url", INDEX + build, exact])
        if status == 0:
            return build
        if not any(text in said for text in NO_BUILD):
            break
        say(f"there is no {exact} for this Python")
    raise failure(f"torch ({', '.join(builds)})", said)


def tried(python: str, names: list[str]) -> dict[str, Any]:
    """Import what a kernel needs, in the new environment; versions, and whether torch sees a GPU."""
    say("trying " + ", ".join(names))
    code = (
        "import importlib, json, sys\n"
        f"versions = {{n: getattr(importlib.import_module(n), '__version__', '') for n in {names!r}}}\n"
        "seen = sys.modules['torch'].cuda.is_available() if 'torch' in sys.modules else None\n"
        "print(json.dumps({'versions': versions, 'cuda': seen}))"
    )
    done = subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)  # fmt: skip
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SetupError(
            f"The new environment does not work: {''.join(last)[:300]}", "run the command again; see the log"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(folder: str) -> None:
    """Run the request in `folder` and leave its result there."""
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = json.load(file)
    try:
        result = install(request)
    except SetupError as error:
        result = {"error": str(error), "hint": error.hint}
    except OSError as error:
        result = {
            "error": f"The setup met an error of the system: {error}",
            "hint": "mend it and run the command again",
        }
    if "error" in result:
        say(result["error"])
    staged = os.path.join(folder, "result.part")
    with open(staged, "w") as file:
        json.dump(result, file)
    os.replace(staged, os.path.join(folder, "result.json"))


if __name__ == "__main__":
    main(sys.argv[1])
