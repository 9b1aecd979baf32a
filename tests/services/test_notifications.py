"""Notifications of ended runs, from a real Prefect server to a webhook and a mailbox on this machine."""

import contextlib
import email
import email.policy
import http.server
import json
import socketserver
import threading

import prefect
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import deploy
from tests.helpers.prefect_server import wait_for
from thousandwords.core.errors import UserError

received: list[dict[str, str]] = []


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP as one mail needs."""

    def handle(self):
        codes = {"EHLO": "250-here\r\n250 AUTH PLAIN", "AUTH": "235 welcome", "QUIT": "221 bye"}
        self.say("220 here")
        for line in self.rfile:
            word, _, rest = line.decode().strip().partition(" ")
            if word.upper() == "RCPT":
                to = rest
            if word.upper() == "DATA":
                self.say("354 go on")
                lines = b"".join(iter(self.rfile.readline, b".\r\n"))
                mail = email.message_from_bytes(lines, policy=email.policy.default)
                text = mail.get_body(("plain", "html")).get_content()
                received.append({"to": to, "subject": mail["Subject"], "text": text})
            self.say(codes.get(word.upper(), "250 fine"))

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture
def listen():
    """A function that starts a server of that kind on a free port, which it returns."""
    received.clear()
    with contextlib.ExitStack() as listeners:

        def start(kind: type) -> int:
            server_class = http.server.HTTPServer if kind is Hook else socketserver.ThreadingTCPServer
            listener = listeners.enter_context(server_class(("127.0.0.1", 0), kind))
            threading.Thread(target=listener.serve_forever, daemon=True).start()
            listeners.callback(listener.shutdown)
            return listener.server_address[1]

        yield start


def test_a_failed_run_is_reported_to_a_webhook_and_a_mailbox(server, listen, monkeypatch, capfd):
    assert deploy.notification_automations() == []
    monkeypatch.setenv("THOUSANDWORDS_WEBHOOK_URL", f"http://127.0.0.1:{listen(Hook)}/")
    address = f"mailto://robot:hush@127.0.0.1:{listen(Mailbox)}?from=robot@example.org&to=team@example.org"
    monkeypatch.setenv("THOUSANDWORDS_MAIL_URL", address)

    @prefect.flow(name="a night")
    def fails():
        raise RuntimeError("the lights went out")

    with temporary_settings({PREFECT_API_URL: server.api}):
        with get_client(sync_client=True) as client:
            for automation in deploy.notification_automations():
                deploy.replace_automation(client, automation)
        with pytest.raises(RuntimeError):
            fails()

    wait_for(lambda: len(received) >= 2, 60)
    mail, call = sorted(received, key=lambda message: "flow" in message)
    assert {key: call[key] for key in ("flow", "state")} == {"flow": "a night", "state": "Failed"}
    assert mail["to"] == "TO:<team@example.org>" and mail["subject"] == "a night: Failed"
    reason = "Flow run encountered an exception: RuntimeError: the lights went out"
    assert f"of a night ended: Failed. {reason}" in mail["text"]
    stored = [server.ask(f"{kind}/filter") for kind in ("block_documents", "automations")]
    assert "hush" not in json.dumps([*capfd.readouterr(), stored])


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [
        ("THOUSANDWORDS_WEBHOOK_URL", "hooks.example/secret", "must be an address that begins with http"),
        ("THOUSANDWORDS_MAIL_URL", "me:secret@example.org", "must be an address in apprise's format, mailtos:"),
        ("THOUSANDWORDS_MAIL_URL", "mailto://:secret", "must be an address in apprise's format"),
        ("THOUSANDWORDS_MAIL_URL", "https://secret", "must be an address in apprise's format"),
    ],
)  # fmt: skip
def test_an_invalid_address_is_rejected_without_showing_it(monkeypatch, capfd, name, address, message):
    monkeypatch.setenv(name, address)
    with pytest.raises(UserError, match=f"^{name} {message}") as caught:
        deploy.notification_automations()
    assert "secret" not in str([caught.value, *capfd.readouterr()])
