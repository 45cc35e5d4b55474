"""What VS Code's Jupyter extension does with the URL of a tunnel, by the library that it talks with: by hand, not in the suite.

npm install --prefix FOLDER @jupyterlab/services && python -m tests.vscode FOLDER

Node runs `vscode.cjs` against the Jupyter of a loopback box: specs, session, input(), comms, interrupt, restart, files, and
output and requests while the link is cut and sshd is away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nbkit import remote
from nbkit.remote.tunnel import tunnel
from tests import jupyter_box, sshd

AWAY_S = 4.0


def fault(server: sshd.Sshd, word: str) -> None:
    """Do one."""
    if word == "cut":
        server.cut()
    elif word == "away":
        server.stop()
    else:
        time.sleep(AWAY_S)
        server.start()


def main(folder: str) -> int:
    """0 when every check passed."""
    with tempfile.TemporaryDirectory() as here:
        for name in ("NBKIT_STATE", "XDG_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
            os.environ[name] = f"{here}/{name}"
            Path(here, name).mkdir()
        with jupyter_box.running() as server, \
                remote.connect("box", config=server.config, python=sys.executable) as box, \
                tunnel(box, config=server.config) as opened, \
                subprocess.Popen(["node", str(Path(__file__).with_suffix(".cjs")), opened.url, folder],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:  # fmt: skip
            assert node.stdin
            assert node.stdout
            try:
                for line in node.stdout:
                    if line.startswith("@"):
                        fault(server, line[1:].strip())
                        node.stdin.write("\n")
                        node.stdin.flush()
                    elif line.startswith(("ok", "FAIL", "ALL", "SOME")):
                        print(line, end="", flush=True)
                return node.wait(30)
            finally:
                node.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
