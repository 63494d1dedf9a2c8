"""A verdict that another environment can believe: the ledger's record, signed with OpenSSH.

`ssh-keygen -Y sign` and `-Y verify` (OpenSSH 8.1) are on every host that Ansible reaches, and the list
of who may sign is a file in sshd's own format: `staging ssh-ed25519 AAAA...`.
"""

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cfn.errors import CfnError, DamagedError, RefusedError, UsageError
from cfn.ledger.canonical import canonical
from cfn.ledger.chain import Head, check_record
from cfn.metrics import checks
from cfn.rollout.records import is_look

EXPORT_VERSION = 1
NAMESPACE = "cfn-verdict"  # a signature made for anything else is refused
TIMEOUT_S = 10.0


def found_verdict(
    records: Iterable[Mapping[str, Any]], stage: str, sequence: int | None
) -> Mapping[str, Any]:
    """The record to export: the one with that number, or the stage's last PASS. Raises UsageError."""
    verdicts = [each for each in records if each["kind"] == "verdict" and each["stage"] == stage]
    wanted = [
        each
        for each in verdicts
        if (
            is_look(each) and each["data"]["verdict"]["verdict"] == "PASS"
            if sequence is None
            else each["sequence"] == sequence
        )
    ]
    if not wanted:
        what = "no PASS" if sequence is None else f"no verdict with number {sequence}"
        raise UsageError(f"{stage} has {what} in this ledger ({len(verdicts)} verdicts)")
    return wanted[-1]


def export(record: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """The record with a signature over its canonical JSON. The key is made if there is none.

    Raises CfnError when ssh-keygen does not do it. Blocks some 10 ms.
    """
    if not key.exists():
        comment = f"ledger of {record['environment']}"
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)])
    done = _run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", str(key)], stdin=canonical(record).encode()
    )
    return {
        "v": EXPORT_VERSION,
        "record": dict(record),
        "public_key": key.with_name(f"{key.name}.pub").read_text().strip(),
        "signature": done.stdout.decode(),
    }


def read_export(value: Mapping[str, Any], allowed_signers: str) -> Mapping[str, Any]:
    """The record in an export whose signature is one of `allowed_signers` for the record's environment.

    Raises UsageError for what is no export, DamagedError for a record that its own hash contradicts,
    RefusedError when the signature is not of an allowed signer.
    """
    try:
        if value.get("v") != EXPORT_VERSION:
            raise ValueError(f"version {value.get('v')!r}; this release reads {EXPORT_VERSION}")
        record = checks.mapping(value.get("record"), "record")
        signature = checks.text(value.get("signature"), "signature")
        sequence = checks.whole(record.get("sequence"), "sequence", low=1)
        before = Head(sequence - 1, checks.text(record.get("previous"), "previous"))
    except ValueError as error:
        raise UsageError(f"the exported verdict is refused: {error}") from None
    try:
        check_record(record, before)
    except ValueError as error:
        raise DamagedError(f"the exported verdict cannot be trusted: {error}") from None
    if not allowed_signers.strip():
        raise RefusedError(
            "no signer is allowed here: put the line that the other environment's export names as "
            "public_key into cfn_staging_signers, as `staging ssh-ed25519 AAAA...`"
        )
    with tempfile.TemporaryDirectory(prefix="cfn-export-") as scratch:
        folder = Path(scratch)
        (folder / "signers").write_text(allowed_signers.rstrip("\n") + "\n")
        (folder / "signature").write_text(signature)
        argv = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", record["environment"],
                "-f", str(folder / "signers"), "-s", str(folder / "signature")]  # fmt: skip
        try:
            _run(argv, stdin=canonical(record).encode())
        except CfnError as error:
            raise RefusedError(
                f"the exported verdict of {record['environment']} is not signed by an allowed signer: {error}"
            ) from None
    return record


def _run(argv: list[str], *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise CfnError(f"{argv[0]}: {error}; install openssh-client") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise CfnError(f"ssh-keygen: {words}")
    return done
