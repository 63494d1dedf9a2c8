"""Build the artifact that is deployed: one archive that needs no network on the host.

    python engine/build_release.py --output build/artifacts [--fault lose:30]

The archive unpacks to `bin/ lib/ systemd/ sysusers.d/ tmpfiles.d/ docs/`, `release.json` and
`MANIFEST`, the SHA-256 and mode of every other file. The version ends in the first twelve hex
digits of the manifest's own SHA-256: the same content is the same release, and a host can tell
whether what it holds is what was built.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ENGINE = Path(__file__).resolve().parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def install_dependencies(cache: Path) -> Path:
    """The locked dependencies as one folder, made once for each lock file."""
    lock = ENGINE / "requirements.lock"
    digest = hashlib.sha256(lock.read_bytes() + Path(__file__).read_bytes() + PYTHON.encode()).hexdigest()[
        :16
    ]
    folder = cache / f"site-packages-{digest}"
    if folder.exists():
        return folder
    print(f"engine: installing the locked dependencies for Python {PYTHON}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        target = Path(scratch) / "lib"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile",
             "--target", str(target), "--requirement", str(lock)],
            check=True,
        )  # fmt: skip
        shutil.rmtree(target / "bin", ignore_errors=True)
        # A third of the statistics packages is their own tests.
        for tests in [*target.glob("numpy/**/tests"), *target.glob("scipy/**/tests")]:
            shutil.rmtree(tests)
        # They hold hashes of scripts that name this machine's folders.
        for record in target.glob("*.dist-info/RECORD"):
            record.unlink()
        target.rename(folder)
    return folder


def assemble(release: Path, dependencies: Path, fault: str) -> None:
    """Lay the release's files out below `release`."""
    shutil.copytree(dependencies, release / "lib")
    shutil.copytree(
        ENGINE / "src/cfn", release / "lib/cfn", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    # Hash-based and unchecked: the host cannot write beside the sources, and need not compare times.
    # In a process of its own: compiled in this one, the bytes told whether pip had run before.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-s", str(release),
         "--invalidation-mode", "unchecked-hash", str(release / "lib")],
        check=True,
    )  # fmt: skip
    (release / "bin").mkdir()
    for script in sorted((ENGINE / "bin").glob("*.sh")):
        shutil.copy(script, release / "bin" / script.name)
    launcher = (ENGINE / "release/cfn").read_text().replace("@PYTHON@", PYTHON)
    (release / "bin/cfn").write_text(launcher)
    for name in ("systemd", "sysusers.d", "tmpfiles.d"):
        shutil.copytree(ENGINE / "release" / name, release / name)
    shutil.copytree(ENGINE.parent / "docs/reference", release / "docs")
    if fault:
        (release / "lab-fault").write_text(fault + "\n")
    for path in release.rglob("*"):
        executable = path.is_dir() or path.parent == release / "bin"
        path.chmod(0o755 if executable else 0o644)


def write_manifest(release: Path, fault: str) -> str:
    """Write MANIFEST and release.json; return the version."""
    lines = []
    for path in sorted(item for item in release.rglob("*") if item.is_file()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest} {path.stat().st_mode & 0o777:04o} {path.relative_to(release)}")
    manifest = "\n".join(lines) + "\n"
    base = tomllib.loads((ENGINE / "pyproject.toml").read_text())["project"]["version"]
    suffix = f"-lab-fault-{fault.replace(':', '-')}" if fault else ""
    version = f"{base}-{hashlib.sha256(manifest.encode()).hexdigest()[:12]}{suffix}"
    (release / "MANIFEST").write_text(manifest)
    (release / "MANIFEST").chmod(0o644)
    (release / "release.json").write_text(json.dumps({"version": version, "python": PYTHON}) + "\n")
    (release / "release.json").chmod(0o644)
    return version


def pack(release: Path, version: str, output: Path) -> Path:
    """One archive, the same bytes for the same content: sorted, no times, no owners."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = 0
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        return entry

    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"cfn-{version}.tar.gz"
    temporary = archive.with_suffix(".part")
    with (
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path in sorted(release.rglob("*")):
            tar.add(path, arcname=str(path.relative_to(release)), recursive=False, filter=anonymous)
    temporary.rename(archive)
    return archive


def main() -> int:
    """Build one archive, and name it in `current.json`, or in `degraded.json` if it has a fault."""
    parser = argparse.ArgumentParser(description="Build the artifact that is deployed.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fault", default="", help="a lab fault: slow:MILLISECONDS or lose:PERCENT")
    options = parser.parse_args()
    if options.fault:
        sys.path.insert(0, str(ENGINE / "src"))
        from cfn.release import parse_fault

        parse_fault(options.fault)
    dependencies = install_dependencies(options.output / "cache")
    with tempfile.TemporaryDirectory(dir=options.output) as scratch:
        release = Path(scratch)
        assemble(release, dependencies, options.fault)
        version = write_manifest(release, options.fault)
        archive = pack(release, version, options.output)
    pointer = options.output / ("degraded.json" if options.fault else "current.json")
    pointer.write_text(json.dumps({"version": version, "archive": archive.name}) + "\n")
    print(f"engine: built {archive.name} ({archive.stat().st_size // 1024} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
