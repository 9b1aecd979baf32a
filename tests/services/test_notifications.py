"""Who is told of a run that ended: a real Prefect server tells a webhook and a mailbox on this machine."""
from __future__ import annotations

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

from flows import bootstrap, notices
from tests.orchestra import wait_for
from thousandwords.errors import UserError

heard: list[dict[str, str]] = []


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP as one letter needs."""

    def handle(self):
        self.say("220 here")
        password, to = "", ""
        for line in self.rfile:
            word, _, rest = line.decode().strip().partition(" ")
            if word.upper() == "AUTH":
                password = rest
            if word.upper() == "RCPT":
                to = rest
            if word.upper() == "DATA":
                self.say("354 go on")
                letter = email.message_from_bytes(b"".join(iter(self.rfile.readline, b".\r\n")), policy=email.policy.default)
                text = letter.get_body(("plain", "html")).get_content()
                heard.append({"password": password, "to": to, "subject": letter["Subject"], "text": text})
            codes = {"EHLO": "250-here\r\n250 AUTH PLAIN", "AUTH": "235 welcome", "QUIT": "221 bye"}
            self.say(codes.get(word.upper(), "250 fine"))

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture
def listen():
    """Starts a server of that kind on a free port, which it returns."""
    heard.clear()
    listeners = []

    def start(kind: type) -> int:
        maker = http.server.HTTPServer if kind is Hook else socketserver.ThreadingTCPServer
        listeners.append(maker(("127.0.0.1", 0), kind))
        threading.Thread(target=listeners[-1].serve_forever, daemon=True).start()
        return listeners[-1].server_address[1]

    yield start
    for one in listeners:
        one.shutdown()
        one.server_close()


@pytest.fixture
def at_server(server):
    with temporary_settings({PREFECT_API_URL: server.api}):
        yield server


def test_a_webhook_and_a_mailbox_are_told_of_a_run_that_failed(at_server, listen, monkeypatch, capfd):
    assert notices.notices() == []
    monkeypatch.setenv("THOUSANDWORDS_WEBHOOK_URL", f"http://127.0.0.1:{listen(Hook)}/")
    address = f"mailto://robot:hush@127.0.0.1:{listen(Mailbox)}?from=robot@example.org&to=team@example.org"
    monkeypatch.setenv("THOUSANDWORDS_MAIL_URL", address)
    with get_client(sync_client=True) as client:
        for automation in notices.notices():
            bootstrap.replace(client, automation)

    @prefect.flow(name="a night")
    def fails():
        raise RuntimeError("the lights went out")

    with pytest.raises(RuntimeError):
        fails()

    wait_for(lambda: len(heard) >= 2, 60)
    letter, call = sorted(heard, key=lambda one: "flow" in one)
    assert {key: call[key] for key in ("flow", "state")} == {"flow": "a night", "state": "Failed"}
    assert letter["to"] == "TO:<team@example.org>" and letter["subject"] == "a night: Failed"
    assert "of a night ended: Failed. Flow run encountered an exception: RuntimeError: the lights went out" in letter["text"]
    said = capfd.readouterr()
    assert "hush" not in said.out + said.err
    shown = json.dumps(at_server.ask("block_documents/filter")) + json.dumps(at_server.ask("automations/filter"))
    assert "hush" not in shown


@pytest.mark.parametrize(
    ("name", "address", "told"),
    [
        ("THOUSANDWORDS_WEBHOOK_URL", "hooks.example/secret", "should be an address that begins with http"),
        ("THOUSANDWORDS_MAIL_URL", "me:secret@example.org", "should be an address as apprise takes it, mailtos://user:password@"),
        ("THOUSANDWORDS_MAIL_URL", "mailto://:secret", "should be an address as apprise takes it"),
        ("THOUSANDWORDS_MAIL_URL", "https://secret", "should be an address as apprise takes it"),
    ],
)
def test_an_address_that_is_none_is_refused_without_showing_it(monkeypatch, capfd, name, address, told):
    monkeypatch.setenv(name, address)
    with pytest.raises(UserError, match=f"^{name} {told}") as caught:
        notices.notices()
    said = capfd.readouterr()
    assert "secret" not in str(caught.value) + said.out + said.err
