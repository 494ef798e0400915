"""Installs the package with pip, regularly and editable, into fresh environments and looks at it from new processes.

Nothing is downloaded: the fresh environments see the packages of the running one through a path file. Python does not
process the path files in a folder that was added by one, so the running environment may have this package installed,
too, without being what is tested; the tests check nevertheless where the package comes from.
"""

import base64
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nnunetv2_sam3d.nnunet import version as compat

PROJECT = Path(__file__).resolve().parents[2]
TRAINERS = (
    "nnUNetTrainer_SAM3DDualPath",
    "nnUNetTrainer_SAM3DFull",
    "nnUNetTrainer_SAM3DOriginal",
    "nnUNetTrainer_SAM3DOriginalEval",
)
VARIABLE = "nnUNet_extTrainer"
PRINT_VARIABLE = f"import os; print(os.environ.get({VARIABLE!r}))"
FIND_TRAINERS = """
import sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

for name in sys.argv[1:]:
    trainer = recursive_find_trainer_class_by_name(name)
    module = sys.modules.get(trainer.__module__)  # nnU-Net drops the modules of the folder in which it found a class
    print("FOUND", trainer.__name__, getattr(module, "__file__", None), sep="|")
"""


@dataclass(frozen=True)
class Installation:
    """A fresh environment in which the package is installed."""

    root: Path
    python: Path
    package: Path  # the folder from which the package must come
    files_before: frozenset[Path]  # all files of the environment before the installation

    @property
    def folder(self) -> str:
        """The folder that nnU-Net has to search."""
        return str(self.package / "_nnunet_ext")

    def run(self, *arguments: str, **variables: str) -> str:
        """Runs the environment's Python like a new shell that has nnU-Net's three paths and ``variables`` set."""
        elsewhere = self.root.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=elsewhere,
            env=shell_environment(elsewhere) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def files(self) -> frozenset[Path]:
        return frozenset(path for path in self.root.rglob("*") if not path.is_dir())

    def find_trainers(self, *names: str, **variables: str) -> dict[str, str]:
        """Lets nnU-Net find trainers; returns the file of the module of each."""
        output = self.run("-c", FIND_TRAINERS, *names, **variables)
        return dict(line.split("|")[1:] for line in output.splitlines() if line.startswith("FOUND|"))


def shell_environment(folder: Path) -> dict[str, str]:
    """Returns the environment of this process without what Python or nnU-Net set in it, with nnU-Net's three paths."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "nnUNet_", "COV_CORE_")) and name != "VIRTUAL_ENV"
    }
    return kept | {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}


def skip_without_build_tools() -> None:
    """Skips the test if the running environment lacks what builds the package."""
    for tool, lowest in (("pip", (22, 0)), ("setuptools", (70, 1))):
        try:
            version = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{tool} is not installed in the running environment")
        if tuple(int(part) for part in version.split(".")[:2]) < lowest:
            pytest.skip(f"{tool} {version} in the running environment is too old, at least {lowest} is needed")


@pytest.fixture(scope="module", params=["regular", "editable"])
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    skip_without_build_tools()
    base = tmp_path_factory.mktemp(request.param)

    # Built from a copy, because setuptools leaves files in the folder from which it builds, and without what such a
    # build left in the project, because setuptools would take old files from there.
    source = base / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(PROJECT / "nnunetv2_sam3d", source / "nnunetv2_sam3d", ignore=ignored)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, source)

    root = base / "environment"
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(root)
    bases = {"base": str(root), "platbase": str(root)}
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"  # the same before Python 3.11
    site_packages = Path(sysconfig.get_path("purelib", scheme, bases))
    scripts = Path(sysconfig.get_path("scripts", scheme, bases))
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Processed last, so that a copy of the package in the running environment comes last, too.
    (site_packages / "zz_running_environment.pth").write_text("\n".join(shared) + "\n")

    editable = request.param == "editable"
    package = (source if editable else site_packages) / "nnunetv2_sam3d"
    empty = Installation(root, scripts / f"python{sysconfig.get_config_var('EXE')}", package, frozenset())
    made = replace(empty, files_before=empty.files())
    assert made.run("-c", PRINT_VARIABLE).strip() == "None"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    made.run("-m", "pip", "install", *options, *(["-e"] if editable else []), str(source))
    return made


def test_package_comes_from_the_installation(installation: Installation) -> None:
    output = installation.run("-c", "import nnunetv2_sam3d as p; print(p.__file__, p.__version__)")
    assert output.split() == [str(installation.package / "__init__.py"), _installed(installation, "version")]


def test_only_own_files_are_installed(installation: Installation) -> None:
    files = _installed(installation, "files").splitlines()
    assert "nnunetv2_sam3d.pth" in files
    own = r"(__editable__.*|(__pycache__/)?__editable___.*|nnunetv2_sam3d.*|(\.\./)+[^/]*/nnUNetv2_sam3d(\.exe)?)"
    assert [file for file in files if not re.fullmatch(own, file.replace("\\", "/"))] == []


def test_files_that_are_no_modules_are_installed_too(installation: Installation) -> None:
    """The report's page is made of a template, a style sheet and a script, and nnU-Net searches a plain folder."""
    needed = {"report/page/report.html.jinja", "report/page/page.css", "report/page/viewer.js"}
    needed |= {"_nnunet_ext/nnunetv2_sam3d_trainers.py"}
    source = PROJECT / "nnunetv2_sam3d"
    data = {
        str(file.relative_to(source))
        for file in source.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert data | needed == {file for file in data | needed if (installation.package / file).is_file()}
    script = "from nnunetv2_sam3d.report.page import Page, render; print(len(render(Page('title', ''))))"
    assert int(installation.run("-c", script)) > 1000


def test_start_up_file_is_recorded_with_its_hash(installation: Installation) -> None:
    # pip would also record a file that the wheel's own list lacks, but without the hash; others refuse such a wheel.
    (record,) = installation.root.rglob("nnunetv2_sam3d-*.dist-info/RECORD")
    content = (record.parent.parent / "nnunetv2_sam3d.pth").read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    assert f"nnunetv2_sam3d.pth,sha256={digest},{len(content)}" in record.read_text().splitlines()


def test_required_nnunet_is_the_one_that_compat_checks_for(installation: Installation) -> None:
    required = [re.fullmatch(r"nnunetv2([<>=].*)", line) for line in _installed(installation, "requires").splitlines()]
    assert [set(match[1].split(",")) for match in required if match] == [set(compat.SUPPORTED_NNUNET.split(","))]


def _installed(installation: Installation, what: str) -> str:
    """Returns what ``importlib.metadata`` says about the installed package, a list as one item per line."""
    script = (
        f"from importlib.metadata import {what} as get; said = get('nnunetv2_sam3d');"
        "print(said if isinstance(said, str) else '\\n'.join(map(str, said)))"
    )
    return installation.run("-c", script).strip()


def test_nnunet_finds_the_trainers_with_only_its_paths_set(installation: Installation) -> None:
    found = installation.find_trainers(*TRAINERS)
    assert set(found) == set(TRAINERS)
    for file in found.values():
        assert Path(file).is_relative_to(installation.package / "trainers")


def test_trainers_in_a_folder_of_the_user_are_found_too(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "users_trainers.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainer_OfTheUser(nnUNetTrainer):\n    pass\n"
    )
    names = ("nnUNetTrainer_OfTheUser", TRAINERS[0])
    assert set(installation.find_trainers(*names, **{VARIABLE: str(tmp_path)})) == set(names)


def test_own_folder_is_added_once_as_the_last(installation: Installation) -> None:
    own, separator = installation.folder, os.pathsep
    for value, expected in (
        ("", own),
        ("a", separator.join(["a", own])),
        (separator.join(["a", "b"]), separator.join(["a", "b", own])),
        ("a" + separator, separator.join(["a", own])),
        (own, own),
        (separator.join([own, "a"]), separator.join([own, "a"])),
    ):
        assert installation.run("-c", PRINT_VARIABLE, **{VARIABLE: value}).strip() == expected


def test_child_processes_keep_the_variable_as_it_is(installation: Installation) -> None:
    child = f"{PRINT_VARIABLE}; import subprocess, sys; subprocess.run([sys.executable, '-c', {PRINT_VARIABLE!r}])"
    script = f"{PRINT_VARIABLE}; import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    output = installation.run("-u", "-c", script, **{VARIABLE: "users"})
    assert output.split() == [os.pathsep.join(["users", installation.folder])] * 3


def test_start_up_is_cheap(installation: Installation) -> None:
    microseconds = []
    for _ in range(7):
        output = installation.run("-X", "importtime", "-c", "pass")
        lines = re.findall(r"import time: +\d+ \| +(\d+) \| +(\S+)", output)
        cumulative = {name: int(time) for time, name in lines}
        ours = {name for name in cumulative if "sam3d" in name}  # an editable install could add a slow import hook
        assert ours == {"nnunetv2_sam3d", "nnunetv2_sam3d._discovery"}
        assert {name.partition(".")[0] for name in cumulative}.isdisjoint({"torch", "numpy", "nnunetv2", "typing"})
        microseconds.append(cumulative["nnunetv2_sam3d._discovery"])  # includes that of the package
    assert min(microseconds) < 5000


def test_start_up_is_silent_if_the_package_is_gone(installation: Installation) -> None:
    hidden = installation.package.with_name("hidden")
    installation.package.rename(hidden)
    try:
        # Without the path file to the running environment, a copy of the package there cannot take its place.
        shared = next(installation.root.rglob("zz_running_environment.pth"))
        shared.rename(shared.with_suffix(".off"))
        try:
            assert installation.run("-c", PRINT_VARIABLE).strip() == "None"
        finally:
            shared.with_suffix(".off").rename(shared)
    finally:
        hidden.rename(installation.package)


def test_uninstalling_leaves_nothing_behind(installation: Installation) -> None:
    """Has to be the last test that uses the installation."""
    assert installation.files() > installation.files_before
    installation.run("-m", "pip", "uninstall", "--yes", "nnunetv2_sam3d")
    assert installation.files() == installation.files_before
    assert not list(installation.root.rglob("*sam3d*"))
    assert installation.run("-c", PRINT_VARIABLE).strip() == "None"


def _names_from_forwarding_module(*paths: Path) -> subprocess.CompletedProcess[str]:
    """Imports the module that nnU-Net finds in a Python that has only ``paths`` besides the standard library."""
    folder = PROJECT / "nnunetv2_sam3d" / "_nnunet_ext"
    script = (
        f"import sys; sys.path[:0] = {[str(folder), *map(str, paths)]!r}; import nnunetv2_sam3d_trainers as module;"
        "print([name for name in vars(module) if name.startswith('nnUNet')])"
    )
    return subprocess.run([sys.executable, "-I", "-S", "-B", "-c", script], capture_output=True, text=True)


def test_python_without_the_package_finds_no_trainers_and_no_error() -> None:
    assert _names_from_forwarding_module().stdout.strip() == "[]"


def test_python_with_a_broken_package_gets_the_error(tmp_path: Path) -> None:
    (tmp_path / "nnunetv2_sam3d").mkdir()
    (tmp_path / "nnunetv2_sam3d" / "__init__.py").touch()
    assert "No module named 'nnunetv2_sam3d.trainers'" in _names_from_forwarding_module(tmp_path).stderr


@pytest.mark.parametrize("version", ["2.8", "2.8.1", "2.8.1.dev0", "2.8rc1", "2.8.10+local", "v2.8.1"])
def test_supported_nnunet_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda name: {"nnunetv2": version}[name])
    assert compat.check_nnunet_version() == version


@pytest.mark.parametrize("version", ["2.7.9", "2.9rc1", "2.9", "2.10", "2.80", "28.1", "2", "3.8", "1!2.8", "unknown"])
def test_other_nnunet_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda name: version)
    with pytest.raises(RuntimeError, match=re.escape(version)) as caught:
        compat.check_nnunet_version()
    assert 'pip install "nnunetv2>=2.8,<2.9"' in str(caught.value)


def test_missing_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compat, "version", missing)
    with pytest.raises(RuntimeError, match='not installed.*pip install "nnunetv2>=2.8,<2.9"'):
        compat.check_nnunet_version()
