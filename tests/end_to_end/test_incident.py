"""An incident on real hosts: no secret leaves them, who must hears of it, and what is dead is named."""

import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.end_to_end.conftest import Lab

pytestmark = pytest.mark.lab

SPLIT_KEY = "lab-split-key"
LEAKED = "Leak3d-T0ken-0815"
HOOK_TOKEN = "T0ken-of-the-hook"  # noqa: S105 - test data
FOLDER = PROJECT / "build/incidents/lab/INC-e2e"


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Takes what a webhook is sent; `said` holds it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            said.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(204)
            self.end_headers()

    said: list[tuple[str, Any]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.said = said  # type: ignore[attr-defined]
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def texts(bundle: Path) -> dict[str, str]:
    """Every file of a bundle."""
    with tarfile.open(bundle) as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_a_p0_with_a_dead_engine_and_a_leaking_service(
    pair: Lab, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    assert pair.play("stage1.yml").returncode == 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    (tmp_path / "token").write_text(HOOK_TOKEN)
    told = tmp_path / "told"
    url = f"http://127.0.0.1:{server.server_address[1]}/x"
    hooks = [
        {"kind": "webhook", "url": url, "token_file": f"{tmp_path}/token"},
        {"kind": "command", "name": "pager", "argv": ["sh", "-c", f"cat > {told}"]},
        {"kind": "command", "name": "stuck", "argv": ["sleep", "60"], "timeout_s": 1},
    ]
    pair.run("one", f"systemd-run --quiet --wait --unit=cfn-leak echo split {SPLIT_KEY}, token={LEAKED}")
    try:
        # A release that does not start is what a module of the release could not tell of.
        pair.run("two", "mv /opt/cfn/current/lib/cfn/cli.py /root/; systemctl kill -s KILL cfn-coordination")
        played = pair.play(
            "incident.yml", "-e", "severity=P0", "-e", "by=ada", "-e", "incident=INC-e2e", "-e", "text=dead",
            "-e", json.dumps({"cfn_notify": hooks}),
        )  # fmt: skip
    finally:
        pair.run("two", "mv /root/cli.py /opt/cfn/current/lib/cfn/; systemctl restart cfn-coordination")

    assert "INC-e2e, P0: " in played.output
    assert "not told: stuck: " in played.output
    assert json.loads(told.read_text())["data"]["severity"] == "P0"
    (authorization, notice), *more = server.said  # type: ignore[attr-defined]
    assert (authorization, notice["event"], more) == (f"Bearer {HOOK_TOKEN}", "incident", [])
    assert HOOK_TOKEN not in played.output

    for host in ("one", "two"):
        (bundle,) = FOLDER.glob(f"{host}-*.tar.gz")
        assert bundle.stat().st_mode & 0o077 == 0
        found = texts(bundle)
        assert {"MANIFEST.json", "config/config.sh", "journal.txt", "units.txt", "samples.jsonl"} <= set(
            found
        )
        for name, text in found.items():
            assert SPLIT_KEY not in text, name
            assert LEAKED not in text, name
        assert pair.run(host, "ls /run/cfn-diagnostics") == ""
        if host == "one":
            assert "split [removed], token=[removed]" in found["journal.txt"]
            assert "rolled_back" in found["ledger.txt"]

    (report,) = FOLDER.glob("report-*.md")
    assert "FILL IN" in report.read_text()
    records = pair.cfn("one", "ledger", "show", "--last", "5")["records"]
    assert ("incident", "P0") in [(each["kind"], each["data"].get("severity")) for each in records]
    # The host whose release does not start is the one that is named; the same again takes it back.
    assert played.returncode == 2
    assert "two: NOT PROVED" in played.output
    assert 'VERSION="v1"' in pair.run("one", "grep VERSION= /etc/cfn/config.sh")
    assert pair.play("fallback_v1.yml").returncode == 0

    closed = {"incident": "INC-e2e", "severity": "P0", "attributed_to": "neither", "state": "closed",
              "text": "a test", "by": "ada"}  # fmt: skip
    assert pair.play("attest.yml", "-e", "stage=stage1", "-e", json.dumps(closed)).returncode == 0


def test_a_severity_that_does_not_exist_touches_nothing(pair: Lab) -> None:
    before = len(pair.cfn("one", "ledger", "show")["records"])
    played = pair.play("incident.yml", "-e", "severity=P9", "-e", "by=ada", "-e", "text=x")
    assert played.returncode == 20
    assert "severity=P9 is refused: P0, P1, P2 and P3 are allowed" in " ".join(played.output.split())
    assert (played.changed, len(pair.cfn("one", "ledger", "show")["records"])) == (0, before)
