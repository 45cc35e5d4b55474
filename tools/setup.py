"""Find a Python that nbkit can use and hand over to install.py, or to the script named first (`setup.py lock`).

This file alone must run under any Python 3, so that an old one meets a sentence and not a SyntaxError: no annotations,
no newer syntax, standard library only.
"""

import os
import subprocess
import sys

NEEDED = (3, 11)
CANDIDATES = ("python3.13", "python3.12", "python3.11")
HERE = os.path.dirname(os.path.abspath(__file__))


def usable(command):
    """True when `command` is there and is new enough."""
    test = "import sys; sys.exit(sys.version_info < %r)" % (NEEDED,)
    try:
        return subprocess.call([command, "-c", test], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def choose():
    """This interpreter if it is new enough, else the first of CANDIDATES on PATH that is; None without one."""
    if sys.version_info >= NEEDED:
        return sys.executable
    for name in CANDIDATES:
        if usable(name):
            return name
    return None


def main():
    """Run the script in place of this process; leave with one line if no Python is new enough."""
    script, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("install", [])
    python = choose()
    if python is None:
        sys.exit(
            "setup: nbkit needs Python %d.%d or newer; this is %s (%s) and none of %s is on PATH."
            " Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv)"
            " or name it: make setup PYTHON=/path/to/python"
            % (NEEDED + (sys.version.split()[0], sys.executable, ", ".join(CANDIDATES)))
        )
    sys.stdout.flush()
    os.execvp(python, [python, os.path.join(HERE, script + ".py")] + arguments)


if __name__ == "__main__":
    main()
