"""The artifact: the same content is the same release, to the byte, wherever it is built."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[1]


def build(output: Path, dependencies: Path) -> Path:
    """Build with dependencies that are there already: fetching them is not what is tested."""
    code = (
        "import sys; from pathlib import Path; import build_release as b;"
        "there = Path(sys.argv.pop()); b.install_dependencies = lambda cache: there;"
        "sys.exit(b.main())"
    )
    subprocess.run(
        [sys.executable, "-c", code, "--output", str(output), str(dependencies)],
        check=True,
        capture_output=True,
        cwd=ENGINE,
    )
    (archive,) = output.glob("cfn-*.tar.gz")
    return archive


@pytest.fixture
def dependencies(tmp_path: Path) -> Path:
    folder = tmp_path / "dependencies"
    folder.mkdir()
    (folder / "some.py").write_text("CHOICES = ('a' in {'a', 'b', 'c', 'd'})\n")
    return folder


def test_two_builds_are_the_same_bytes(tmp_path: Path, dependencies: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "elsewhere").mkdir()
    one = build(tmp_path / "one", dependencies)
    two = build(tmp_path / "elsewhere", dependencies)
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_the_archive_holds_what_a_host_needs(tmp_path: Path, dependencies: Path) -> None:
    (tmp_path / "out").mkdir()
    with tarfile.open(build(tmp_path / "out", dependencies)) as tar:
        names = set(tar.getnames())
        modes = {member.name: member.mode for member in tar.getmembers()}
    assert {
        "MANIFEST",
        "release.json",
        "bin/cfn",
        "bin/message-bus.sh",
        "lib/cfn/cli.py",
        "lib/some.py",
    } <= names
    assert modes["bin/cfn"] == 0o755
    assert not any(mode & 0o022 for mode in modes.values())
    assert "lab-fault" not in names
