"""The root file system that all hosts share: unpacked once, kept in the cache, never changed.

::

    CACHE_ROOT/HASH/root         the image, complete: it appears here by a rename
    CACHE_ROOT/HASH.lock         held by the one command that builds or removes it
    CACHE_ROOT/HASH.building/    an unfinished one; whoever gets the lock removes it
    CACHE_ROOT/HASH.log          what the last build printed

A running host holds ``HASH/used`` locked (shared), so an image in use is never removed.
"""

import os
import subprocess
import time
from pathlib import Path

from lab import apt, recipe
from lab.errors import LabError
from lab.files import private_dir, remove_tree
from lab.locks import locked, try_lock
from lab.proc import run
from lab.progress import Progress

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BUILD_TIMEOUT_S = 600
USED = "used"


def root_of(cache_root: Path, image: str) -> Path:
    """The unpacked files of *image*."""
    return cache_root / image / "root"


def ensure(cache_root: Path, progress: Progress) -> str:
    """Have the image of the current recipe in the cache; returns its hash.

    Blocks while it is built, here (about half a minute) or by another lab command. Raises
    LabError with the end of the build's log.
    """
    image = recipe.image_hash()
    final = cache_root / image
    if final.is_dir():
        return image
    private_dir(cache_root)
    with locked(
        cache_root / f"{image}.lock",
        timeout_s=BUILD_TIMEOUT_S + 30,
        what=f"the image {image}",
        waiting=lambda: progress.waiting("another lab command builds the image"),
    ) as lock_fd:
        if final.is_dir():
            return image
        building = cache_root / f"{image}.building"
        remove_tree(building)
        private_dir(building)
        began = time.monotonic()
        progress.step("image", f"building {image} (half a minute, only the first time)")
        try:
            _unpack(building / "root", cache_root / f"{image}.log", lock_fd, progress)
            _finish(building / "root")
            (building / USED).touch(mode=0o600)
            building.rename(final)
        except BaseException:
            remove_tree(building)
            raise
        progress.step("image", f"built in {time.monotonic() - began:.1f} s")
    return image


def _machine_sources() -> dict[str, str]:
    """The machine's apt source files, path to content."""
    folder = Path("/etc/apt")
    found = [folder / "sources.list", *folder.glob("sources.list.d/*.list"),
             *folder.glob("sources.list.d/*.sources")]  # fmt: skip
    return {str(path): path.read_text() for path in found if path.is_file()}


def _unpack(root: Path, log: Path, lock_fd: int, progress: Progress) -> None:
    sources = apt.image_sources(_machine_sources(), recipe.SUITE)
    argv = recipe.contained_argv(recipe.mmdebstrap_argv(str(root), sources, str(KEYRING)))
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    with log.open("w+") as output:
        # The build keeps the lock's descriptor: should this process be killed, nobody begins
        # another build before the last process of this one is gone.
        builder = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            pass_fds=(lock_fd,), env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        try:
            while builder.poll() is None:
                progress.waiting(f"image: {_last_line(log)}")
                if time.monotonic() > deadline:
                    raise LabError(f"the image was not built within {BUILD_TIMEOUT_S} s: see {log}")
                time.sleep(0.1)
        finally:
            if builder.poll() is None:
                builder.kill()
            builder.wait()
    if builder.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise LabError(
            f"building the image failed (exit code {builder.returncode}; all of it in {log}):\n"
            f"{tail}\nCheck that `apt-get update` works on this machine"
        )


def _last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 400))
        lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.startswith("I: ")), "unpacking")


def _finish(root: Path) -> None:
    """What Debian's packages do not bring: the user, a few files, which units start."""
    run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", recipe.USER])
    for name in sorted((root / "etc/ssh").glob("ssh_host_*")):
        name.unlink()  # each host gets a key of its own
    for path, (content, mode) in recipe.FILES.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(content)
        target.chmod(mode)
    run(["systemctl", f"--root={root}", "enable", *recipe.ENABLED])
    run(["systemctl", f"--root={root}", "mask", *recipe.MASKED])
    run(["systemctl", f"--root={root}", "set-default", "multi-user.target"])


def remove_unfinished(cache_root: Path) -> None:
    """Remove what an interrupted build left; a build that is still going on is left alone."""
    for path in cache_root.glob("*.building"):
        lock = try_lock(path.with_suffix(".lock"))
        if lock is not None:
            remove_tree(path)
            os.close(lock)


def remove_unused(cache_root: Path, needed: set[str]) -> tuple[list[str], list[str]]:
    """Remove the cached images; returns the hashes removed and those kept because in use.

    *needed* are images that hosts of other labs, running or not, were made from.
    """
    removed: list[str] = []
    kept: list[str] = []
    for path in sorted(cache_root.glob("*.lock")):
        image = path.name.removesuffix(".lock")
        with locked(path, timeout_s=5, what=f"the image {image}"):
            used = try_lock(cache_root / image / USED) if (cache_root / image).is_dir() else -1
            if used is None or image in needed:
                kept.append(image)
            else:
                remove_tree(cache_root / image)
                remove_tree(cache_root / f"{image}.building")
                (cache_root / f"{image}.log").unlink(missing_ok=True)
                path.unlink()
                removed.append(image)
            if used is not None and used >= 0:
                os.close(used)
    return removed, kept
