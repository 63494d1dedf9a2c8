"""What is in the image that all hosts share: pure data, and its hash, which names the image.

Hosts have no route out, so whatever a role needs from Debian is in here.
"""

import hashlib
import json

SUITE = "bookworm"
USER = "deploy"
INIT = "/usr/local/sbin/lab-init"

PACKAGES = (
    "acl",  # Ansible hands files to an unprivileged become_user with setfacl
    "bash",
    "ca-certificates",
    "curl",
    "dbus",
    "faketime",  # clock skew for one unit
    "iproute2",
    "iputils-ping",
    "jq",
    "less",
    "logrotate",
    "lsof",
    "nftables",
    "openssh-server",
    "openssl",
    "procps",
    "psmisc",
    "python3",
    "python3-apt",  # Ansible's apt module
    "python3-psutil",
    "python3-yaml",
    "rsync",
    "socat",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
    "util-linux",
    "xz-utils",
    "zstd",
)

# Nothing reads these inside a host, and unpacking them takes a third of the time.
EXCLUDED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*")

ENABLED = ("systemd-networkd.service", "ssh.service")
# Logins on a console nobody sees, downloads that cannot work, and waiting for both.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "networkd-dispatcher.service",
    "systemd-networkd-wait-online.service",
)

_INIT = """\
#!/bin/sh
# First process of a lab host. nspawn mounts the cgroup v1 hierarchies read-only; systemd applies
# MemoryMax= and TasksMax= only where it may write. With cgroup v2 there is nothing to do.
for name in memory pids cpu; do
    if [ -e "/sys/fs/cgroup/$name/cgroup.procs" ]; then
        mount -o remount,bind,rw "/sys/fs/cgroup/$name"
    fi
done
exec /lib/systemd/systemd "$@"
"""

_SSHD = """\
# Ansible opens many connections at once, and many sessions over each of them.
MaxStartups 200:30:400
MaxSessions 100
UseDNS no
PasswordAuthentication no
PermitRootLogin no
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys.%u .ssh/authorized_keys
"""

_JOURNALD = """\
[Journal]
Storage=persistent
SystemMaxUse=64M
RuntimeMaxUse=16M
"""

# Path to content and mode, written into the image once it is unpacked.
FILES: dict[str, tuple[str, int]] = {
    INIT: (_INIT, 0o755),
    "/etc/ssh/sshd_config.d/10-lab.conf": (_SSHD, 0o644),
    "/etc/systemd/journald.conf.d/10-lab.conf": (_JOURNALD, 0o644),
    f"/etc/sudoers.d/{USER}": (f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440),
    # Filled in for each host; empty here so that no two hosts share one by accident.
    "/etc/machine-id": ("", 0o444),
    "/etc/hostname": ("localhost\n", 0o644),
    "/etc/resolv.conf": ("# No name server: lab hosts have no route out.\n", 0o644),
}


def image_hash() -> str:
    """Names the image: any change above makes another image."""
    recipe = [SUITE, USER, PACKAGES, EXCLUDED, ENABLED, MASKED, sorted(FILES.items())]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def mmdebstrap_argv(target: str, sources: list[str], keyring: str) -> list[str]:
    """The command that unpacks the image into *target*; *sources* are apt lines, or none."""
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--keyring={keyring}",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        SUITE,
        target,
        *sources,
    ]


def contained_argv(argv: list[str]) -> list[str]:
    """*argv*, so that it leaves neither process nor mount behind when its parent dies.

    It runs in process-id and mount namespaces of its own: the kernel ends everything in them
    with their first process, which dies with ``unshare``, which dies with its parent.
    """
    return [
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--fork", "--kill-child=KILL", "--pid", "--mount-proc",
        "--mount", "--propagation", "private",
        *argv,
    ]  # fmt: skip
