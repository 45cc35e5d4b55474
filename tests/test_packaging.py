"""What a user installs: the wheel, the lock, environment.yml and pyproject.toml say the same."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nbkit
from tools import install, lock

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# What `make setup` installs; multi-gpu and cloud are for those who ask.
INSTALLED_EXTRAS = ("train", "lab")
INSTALLED_GROUPS = ("test", "browser", "lint")
ENVIRONMENTS = [
    {
        "sys_platform": platform,
        "platform_system": system,
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    for platform, system in (("linux", "Linux"), ("darwin", "Darwin"))
    for python in lock.pythons()
]

HERE = {"sys_platform": sys.platform}  # the rest of a marker's environment is this interpreter's own


def required(extras=INSTALLED_EXTRAS, groups=INSTALLED_GROUPS):
    """Requirements of the core, of some extras and of some groups."""
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    for group in groups:
        texts += PYPROJECT["dependency-groups"][group]
    return [Requirement(text) for text in texts]


def locked(environment):
    """Name and version of what the lock, and torch.txt, install on one platform and Python."""
    text = (ROOT / "requirements" / "lock.txt").read_text() + (ROOT / "requirements" / "torch.txt").read_text()
    pins = [Requirement(found[0].rstrip(" \\")) for found in re.finditer(r"^[\w.-]+==.*$", text, re.MULTILINE)]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in chosen}
    assert len(chosen) == len(versions), "the lock pins a package twice"
    return versions


def unmet(requirements, versions):
    """Each requirement that `versions` does not hold within its range."""
    return [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"), prereleases=True)
        or canonicalize_name(requirement.name) not in versions
    ]


def not_installed():
    """The locked packages that are not installed here, as text."""
    here = {canonicalize_name(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    return ", ".join(sorted(set(locked(HERE)) - here))


class TestLock:
    @pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: f"{e['sys_platform']}-{e['python_version']}")
    def test_holds_what_pyproject_asks_for(self, environment):
        """On each platform and Python the lock has every package of core, train, lab, test and lint, in range."""
        assert [] == unmet(required(), locked(environment))

    def test_a_missing_or_too_old_pin_is_found(self):
        """The comparison fails on a package that is absent and on a version below the bound."""
        versions = {"trl": "1.15.0"}
        assert ["trl<2,>=1.16", "peft>=0.20"] == unmet(
            [Requirement("trl>=1.16,<2"), Requirement("peft>=0.20")], versions
        )

    def test_every_pin_but_torch_has_hashes(self):
        """pip verifies every file but torch's, whose CPU and CUDA builds differ."""
        text = (ROOT / "requirements" / "lock.txt").read_text()
        blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
        assert [] == [block.split()[0] for block in blocks if "--hash=sha256:" not in block]
        assert ["torch"] == [name for name in locked(ENVIRONMENTS[0]) if f"\n{name}==" not in f"\n{text}".lower()]

    def test_names_no_index_and_no_cuda(self):
        """The lock installs from whatever index a reader uses, and without gigabytes for a GPU that is not there."""
        text = (ROOT / "requirements" / "lock.txt").read_text()
        assert [] == re.findall(r"^(?:-.*|torch==.*|triton==.*|nvidia-(?!ml-py).*|.*://.*)$", text, re.MULTILINE)

    @pytest.mark.skipif(bool(not_installed()), reason=f"needs .venv as make setup makes it: no {not_installed()}")
    def test_holds_nothing_that_nobody_needs(self):
        """Each pin is asked for by pyproject, by lock.in, or by a package that is; torch finds all its own needs."""
        lines = (ROOT / "requirements" / "lock.in").read_text().splitlines()
        asked = [*required(), *(Requirement(line) for line in lines if line and not line.startswith("#"))]
        versions, queue = locked(HERE), [pair for requirement in asked for pair in pairs(requirement)]
        wanted = set()
        while queue:
            name, extra = queue.pop()
            # What only the CUDA builds of torch need comes with torch, from the index.
            with_cuda = name.startswith(("nvidia-", "cuda-", "triton")) and name not in versions
            if (name, extra) not in wanted and not with_cuda:
                assert name in versions
                wanted.add((name, extra))
                queue += needs(name, extra)
        assert set() == set(versions) - {name for name, _ in wanted}

    def test_tidy_drops_what_says_nothing(self):
        """uv's markers for both supported systems go; one that chooses stays; option lines go."""
        raw = (
            "--no-binary :none:\n"
            "a==1 ; sys_platform == 'darwin' or sys_platform == 'linux' \\\n    --hash=sha256:00\n"
            "b==2 ; python_full_version < '3.12' and (sys_platform == 'darwin' or sys_platform == 'linux') \\\n"
            "c==3 ; sys_platform == 'darwin' \\\n"
        )
        expected = (
            "a==1 \\\n    --hash=sha256:00\n"
            "b==2 ; python_full_version < '3.12' \\\n"
            "c==3 ; sys_platform == 'darwin' \\\n"
        )
        assert lock.HEADER + expected == lock.tidy(raw)


def pairs(requirement):
    """A requirement as (name, extra): the package itself, under "", and each extra it asks for."""
    return [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]


def needs(name, extra):
    """What an installed package asks for here; nothing for those of which only the weights are wanted."""
    if name in install.WITHOUT_THEIR_NEEDS:
        return []
    asked = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    active = [found for found in asked if found.marker is None or found.marker.evaluate({"extra": extra})]
    return [pair for requirement in active for pair in pairs(requirement)]


CONDA_NAMES = {"pytorch": "torch", "jupyter_client": "jupyter-client"}


class TestConda:
    def specs(self):
        """Name, as pip knows it, and bounds of everything environment.yml installs."""
        content = yaml.safe_load((ROOT / "environment.yml").read_text())
        pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
        texts = [entry for entry in content["dependencies"] if isinstance(entry, str)] + pip
        found = [Requirement(text) for text in texts if text not in {"pip", "-e ."} and not text.startswith("python=")]
        return content, pip, {CONDA_NAMES.get(r.name, r.name): r.specifier for r in found}

    def test_names_and_bounds_agree_with_pyproject(self):
        """conda installs core, train and lab with pyproject's own bounds, and nbkit from the clone."""
        content, pip, specs = self.specs()
        assert {r.name: r.specifier for r in required(groups=())} == specs
        assert "-e ." == pip[-1]
        assert ["conda-forge", "nodefaults"] == content["channels"]

    def test_its_python_is_one_that_nbkit_claims(self):
        """The Python that conda installs stands among the classifiers."""
        content, _, _ = self.specs()
        assert content["dependencies"][0].removeprefix("python=") in lock.pythons()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the tree as a release is, without isolation or network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
    return next(folder.glob("*.whl"))


class TestWheel:
    def test_holds_the_package_and_its_data_only(self, wheel):
        """py.typed, every module, every data file and the lock are inside; tests, notebooks and tools are not."""
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
        source = [path for path in (ROOT / "nbkit").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        lock = {"nbkit/remote/lock/lock.txt", "nbkit/remote/lock/torch.txt"}  # `nbkit setup HOST` installs from it
        assert {path.relative_to(ROOT).as_posix() for path in source} | lock == names
        assert "nbkit/py.typed" in names
        assert any(name.startswith("nbkit/data/sets/") for name in names)

    def test_its_metadata_is_ours(self, wheel):
        """The distribution is nbkit-llm, at nbkit's version, with the extras and the licence that pyproject names."""
        with zipfile.ZipFile(wheel) as archive:
            home = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
            metadata = Parser().parsestr(archive.read(f"{home}/METADATA").decode())
            scripts = archive.read(f"{home}/entry_points.txt").decode()
        assert ("nbkit-llm", nbkit.__version__) == (metadata["Name"], metadata["Version"])
        assert set(PROJECT["optional-dependencies"]) == set(metadata.get_all("Provides-Extra"))
        assert "Apache-2.0" == metadata["License-Expression"]
        assert "nbkit = nbkit.cli:main" in scripts

    def test_its_command_tells_the_version(self, wheel, tmp_path):
        """`nbkit --version`, run from the wheel alone, prints nbkit's version."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path)
        code = "import sys; sys.argv[0] = 'nbkit'; from nbkit.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "--version"]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert 0 == done.returncode, done.stderr
        assert nbkit.__version__ in done.stdout.split()


class TestSetup:
    def test_its_first_file_is_read_by_any_python_3(self):
        """An old Python meets the sentence about its version, not a SyntaxError."""
        source = (ROOT / "tools" / "setup.py").read_text()
        assert "nbkit needs Python" in source
        ast.parse(source, feature_version=(3, 6))
        with pytest.raises(SyntaxError):  # what the check is worth: newer syntax is refused
            ast.parse("if (n := 1): pass", feature_version=(3, 6))
        assert "from __future__ import annotations" not in source  # 3.7

    def test_a_full_disk_is_said_before_anything_is_done(self, monkeypatch):
        """The setup looks at the free space first, and says how much there is and how much it needs."""
        monkeypatch.setattr(install, "FRESH_GIB", 1e9)
        monkeypatch.setattr(install, "AGAIN_GIB", 1e9)
        with pytest.raises(install.SetupError, match=r"has \d+\.\d GiB free; the setup needs 1000000000 GiB"):
            install.check_machine()

    def test_a_python_without_ensurepip_is_said(self, monkeypatch):
        """Debian's python3 without python3-venv is told which package to install."""
        monkeypatch.setitem(sys.modules, "ensurepip", None)
        with pytest.raises(install.SetupError, match=r"it lacks ensurepip\. Fix: apt install python3-venv"):
            install.check_machine()

    def test_a_package_that_was_cut_off_is_forgotten(self, tmp_path, monkeypatch):
        """A record without INSTALLER, and what pip set aside, go; a whole package stays."""
        site = tmp_path / "lib" / "python3.11" / "site-packages"
        for name in ("whole-1.dist-info", "half-2.dist-info", "~alf"):
            (site / name).mkdir(parents=True)
            (site / name / "METADATA").touch()
        (site / "whole-1.dist-info" / "INSTALLER").touch()
        monkeypatch.setattr(install, "VENV", tmp_path)
        assert ["half-2.dist-info"] == install.forget_half_installed()
        assert ["whole-1.dist-info"] == [path.name for path in site.iterdir()]

    def test_only_a_complete_and_current_setup_counts(self, tmp_path, monkeypatch):
        """The stamp is believed when it is there, is whole, and matches the lock, pyproject.toml and the folder."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").symlink_to(sys.executable)
        for name, path in {"VENV": "", "PYTHON": "bin/python", "STAMP": "stamp.json"}.items():
            monkeypatch.setattr(install, name, tmp_path / path)
        assert not install.ready()
        install.write_stamp()
        assert install.ready()
        stamp = json.loads(install.STAMP.read_text())
        for key in stamp:
            install.STAMP.write_text(json.dumps({**stamp, key: "another"}))
            assert not install.ready(), key
        install.STAMP.write_text(json.dumps(stamp)[:50])
        assert not install.ready()

    def test_a_stage_that_fails_shows_its_last_words(self, tmp_path):
        """The end of the output and the command are in the error, so that nobody has to look for a log."""
        command = [sys.executable, "-c", "print('no such version'); raise SystemExit(3)"]
        with pytest.raises(install.SetupError, match=r"(?s)failed \(exit 3\).*no such version.*The command: .*python"):
            install.step("torch", command, log=tmp_path / "log")
