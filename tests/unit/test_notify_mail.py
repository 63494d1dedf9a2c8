"""A mail hook on a server that speaks as much SMTP as one mail needs, in clear and by TLS."""

import base64
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import RunModule

NOTICE = {"event": "incident", "subject": "P1 in lab", "text": "V2 slow\nsince noon", "data": {}}
PASSWORD = "Passw0rd-of-the-mail"  # noqa: S105 - test data


@dataclass
class MailServer:
    """Takes one mail; `lines` is what it was told, `clear` what of it before TLS."""

    listening: socket.socket
    certificate: ssl.SSLContext
    lines: list[str] = field(default_factory=list)
    clear: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"localhost:{self.listening.getsockname()[1]}"

    def serve(self) -> None:
        connection, _ = self.listening.accept()
        with connection:
            connection.sendall(b"220 here\r\n")
            if not self.talk(connection, self.clear):
                return
            try:
                encrypted = self.certificate.wrap_socket(connection, server_side=True)
            except OSError:
                return  # the certificate was not believed
            with encrypted:
                self.talk(encrypted, [])

    def talk(self, connection: socket.socket, kept: list[str]) -> bool:
        """Answer until the end; True where the caller wants TLS now."""
        in_data = False
        with connection.makefile("rb") as told:
            for raw in told:
                line = raw.decode().rstrip("\r\n")
                kept.append(line)
                self.lines.append(line)
                if in_data and line != ".":
                    continue
                in_data = line == "data"
                connection.sendall(self.answer(line).encode() + b"\r\n")
                if line in ("STARTTLS", "QUIT"):
                    return line == "STARTTLS"
        return False

    def answer(self, line: str) -> str:
        if line.startswith("ehlo"):
            return "250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN"
        if line.startswith("AUTH"):
            return "235 well"
        return {"data": "354 go on", "QUIT": "221 bye", "STARTTLS": "220 go on"}.get(line, "250 well")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that nobody knows, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    asked = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    asked += ["-addext", "subjectAltName=DNS:localhost", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(asked, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def mail_server(certificate: tuple[Path, Path]) -> Iterator[MailServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = MailServer(listening, context)
        threading.Thread(target=running.serve, daemon=True).start()
        yield running


def test_a_mail_is_given_to_its_server(run_module: RunModule, mail_server: MailServer) -> None:
    hook = {"kind": "mail", "to": ["ada@example.org"], "smtp": mail_server.address}
    assert run_module("cfn_notify", hooks=[hook], **NOTICE)["sent"] == ["mail to ada@example.org"]
    assert "Subject: P1 in lab" in mail_server.lines
    assert "since noon" in mail_server.lines


@pytest.mark.parametrize("known", [True, False])
def test_a_password_is_for_a_server_that_is_who_it_says_only(
    run_module: RunModule,
    mail_server: MailServer,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    hook = {"kind": "mail", "name": "m", "to": ["ada@example.org"], "smtp": mail_server.address, "tls": True}
    hook |= {"user": "ada", "password_file": str(tmp_path / "password")}
    result = run_module("cfn_notify", hooks=[hook], **NOTICE)
    assert PASSWORD not in str(result)
    told = base64.b64encode(f"\0ada\0{PASSWORD}".encode()).decode()
    assert not any(told in line for line in mail_server.clear)
    if known:
        assert result["sent"] == ["m"], result
        assert any(told in line for line in mail_server.lines)
        assert "since noon" in mail_server.lines
    else:
        assert "CERTIFICATE_VERIFY_FAILED" in result["unsent"][0]
        assert not any("AUTH" in line or "noon" in line for line in mail_server.lines)
