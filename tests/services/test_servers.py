"""The servers of a team by their rules: settings, how they are found and ended, and compose.yml. For real: test_team.py."""
from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from flows import database, processes, servers, services, store
from flows.services import Passwords, Server, Settings
from thousandwords.errors import UserError

ROOT = Path(__file__).parent.parent
SECRETS = Passwords("pg", "s3key", "mlpw", "mlsecret", "prpw")


def test_every_server_has_a_port_of_its_own_and_the_store_four():
    assert Settings().ports() == {"postgres": [5442], "s3": [9000, 9001, 9002, 9003], "mlflow": [5000], "prefect": [4200]}


def test_ports_and_folder_come_from_the_environment(tmp_path):
    settings = services.read_settings({"SERVERS_MLFLOW_PORT": "5055", "SERVERS_FOLDER": str(tmp_path)})
    assert settings == Settings(tmp_path, 5442, 9000, 5055, 4200)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SERVERS_S3_PORT": "many"}, "SERVERS_S3_PORT is 'many'; it must be the number of a port"),
        ({"SERVERS_S3_PORT": "80"}, "SERVERS_S3_PORT leads to port 80; ports from 1024 to 65535 can be used"),
        ({"SERVERS_S3_PORT": "65534"}, "SERVERS_S3_PORT leads to port 65536"),
        ({"SERVERS_MLFLOW_PORT": "9002"}, "SERVERS_MLFLOW_PORT and SERVERS_S3_PORT both lead to port 9002; change one"),
    ],
)
def test_a_port_that_cannot_be_is_refused_by_its_setting(given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        services.read_settings(given)


def test_a_taken_port_is_named_with_the_setting_that_changes_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = f"port {port} of 127.0.0.1 is taken, and mlflow wants it. Set SERVERS_MLFLOW_PORT to another, or stop what listens"
        with pytest.raises(UserError, match=re.escape(said)):
            servers.refuse_taken_ports(free_settings(Path("."), mlflow_port=port))


def test_passwords_are_made_once_for_their_owner_only(tmp_path):
    first = services.keep_passwords(tmp_path)
    assert services.keep_passwords(tmp_path) == first and len(set(vars(first).values())) == 5
    assert stat.S_IMODE(services.password_file(tmp_path).stat().st_mode) == 0o600
    assert {len(value) for value in vars(first).values()} == {48}


def test_asking_for_the_variables_before_any_start_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"has no passwords yet. Run: make servers"):
        services.read_passwords(tmp_path)


def test_clients_get_each_address_and_key_as_a_line_for_the_shell():
    lines = servers.export_lines(services.client_environment(Settings(), SECRETS)).splitlines()
    assert lines == [
        "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000",
        "export MLFLOW_TRACKING_USERNAME=admin",
        "export MLFLOW_TRACKING_PASSWORD=mlpw",
        "export PREFECT_API_URL=http://127.0.0.1:4200/api",
        "export PREFECT_API_AUTH_STRING=thousandwords:prpw",
    ]
    assert servers.export_lines({"A": "x y"}) == "export A='x y'"


SHOW = "import flows, os; print(*(os.environ.get(name) for name in ('PREFECT_API_URL', 'MLFLOW_TRACKING_URI')))"


@pytest.mark.parametrize("is_up", [True, False])
def test_flows_use_the_servers_of_their_folder_while_they_are_up_unless_told_otherwise(tmp_path, is_up):
    settings = free_settings(tmp_path / ".servers")
    settings.folder.mkdir()
    services.keep_passwords(settings.folder)
    me = psutil.Process()
    record = {"pid": me.pid, "born": me.create_time() - (0 if is_up else 100)}
    for name in ("prefect", "mlflow"):
        (settings.folder / f"{name}.pid").write_text(json.dumps(record))
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "SERVERS_"))}
    own = {**bare, "PYTHONPATH": str(ROOT), "SERVERS_PREFECT_PORT": "4321", "SERVERS_MLFLOW_PORT": "5432"}
    elsewhere = {**own, "PREFECT_API_URL": "http://elsewhere/api"}

    ask = [sys.executable, "-c", SHOW]
    told = [subprocess.check_output(ask, cwd=tmp_path, env=one, text=True).split() for one in (own, elsewhere)]

    here = ["http://127.0.0.1:4321/api", "http://127.0.0.1:5432"] if is_up else ["None", "None"]
    assert told == [here, ["http://elsewhere/api", "None"]]


def test_no_password_stands_in_a_command_line_and_no_client_setting_reaches_a_server(monkeypatch):
    monkeypatch.setattr(database, "programs", lambda: Path("/pg"))
    monkeypatch.setattr(database, "user", lambda: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    for server in services.servers(Settings(), SECRETS):
        assert not set(vars(SECRETS).values()) & set(server.command), server.name
        assert not any(value in word for word in server.command for value in ("mlpw", "prpw", "s3key", "mlsecret"))
        assert "MLFLOW_TRACKING_URI" not in server.env
        assert "127.0.0.1" in " ".join(server.command) or server.name == "s3"  # the store's own default


def test_only_the_door_of_the_store_may_listen_elsewhere_than_on_loopback(tmp_path):
    files = store.configuration(tmp_path, "0.0.0.0", 9000, "one:two", "key", "salt")
    places = {name: re.findall(r"bind_ip = (\S+)\nbind_port = (\d+)", text) for name, text in files.items()}
    assert places == {
        "swift.conf": [],
        "proxy.conf": [("0.0.0.0", "9000")],
        "account.conf": [("127.0.0.1", "9001")],
        "container.conf": [("127.0.0.1", "9002")],
        "object.conf": [("127.0.0.1", "9003")],
    }
    assert "user_one_two = key .admin" in files["proxy.conf"]


def test_a_key_that_the_store_cannot_take_is_refused(tmp_path):
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID is 'team'; the store wants account:user"):
        store.configuration(tmp_path, "127.0.0.1", 9000, "team", "key", "salt")


def test_a_folder_that_user_postgres_may_not_enter_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "user", lambda: "postgres")
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(UserError, match="PostgreSQL runs as user postgres, who may not enter .*/closed. Set SERVERS_FOLDER"):
        database.make_folder(tmp_path / "closed" / "postgres", "secret")
    assert not list((tmp_path / "closed").iterdir())


FAMILY = """
import subprocess, sys, time
if len(sys.argv) == 1:
    for own_session in (False, True):
        subprocess.Popen([sys.executable, __file__, "child"], start_new_session=own_session)
print("here", flush=True)
time.sleep(60)
"""


def launch_family(folder: Path) -> subprocess.Popen:
    """A server with two children, one of which left its session."""
    (folder / "family").mkdir()
    script = folder / "family.py"
    script.write_text(FAMILY)
    process = processes.launch("family", [sys.executable, str(script)], folder, dict(os.environ))
    wait_for(lambda: processes.last_lines(folder, "family").count("here") == 3)
    return process


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("is_leader_killed", [False, True])
def test_an_end_leaves_no_process_even_when_the_leader_was_killed(tmp_path, is_leader_killed):
    process = launch_family(tmp_path)
    if is_leader_killed:
        process.kill()
        process.wait()
        assert processes.leader(tmp_path, "family") is None
    assert processes.end(tmp_path, "family", patience=2) == (2 if is_leader_killed else 3)
    assert processes.ours(tmp_path, "family") == [] and not (tmp_path / "family.pid").exists()


def test_a_process_that_only_has_the_number_of_ours_is_left_alone(tmp_path):
    somebody = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = psutil.Process(somebody.pid).create_time()
    (tmp_path / "mlflow.pid").write_text(json.dumps({"pid": somebody.pid, "born": born - 100}))
    assert processes.end(tmp_path, "mlflow") == 0 and somebody.poll() is None
    somebody.kill()
    somebody.wait()


def test_a_server_that_ends_is_named_with_its_last_lines(tmp_path):
    (tmp_path / "mlflow").mkdir()
    command = [sys.executable, "-c", "print('no such database'); raise SystemExit(3)"]
    process = processes.launch("mlflow", command, tmp_path, dict(os.environ))
    server = Server("mlflow", command, {}, lambda: False)
    with pytest.raises(UserError, match=r"mlflow ended with code 3; the others were stopped(.|\n)*\n  no such database"):
        servers.wait_until_up(server, process, tmp_path, 20)


def test_when_one_server_fails_none_is_left(tmp_path, monkeypatch):
    (tmp_path / "postgres").mkdir()
    commands = {"postgres": "import time; time.sleep(60)", "mlflow": "raise SystemExit('bad luck')"}
    fakes = [
        Server(name, [sys.executable, "-c", code], dict(os.environ), lambda name=name: name == "postgres")
        for name, code in commands.items()
    ]
    monkeypatch.setattr(services, "servers", lambda *_: fakes)
    monkeypatch.setattr(services, "missing", list)
    for name in ("make_folder", "make_databases"):
        monkeypatch.setattr(database, name, lambda *_: None)
    with pytest.raises(UserError, match="bad luck"):
        servers.start(free_settings(tmp_path))
    assert [process for name in servers.NAMES for process in processes.ours(tmp_path, name)] == []


def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yml").read_text())


def test_compose_names_the_same_servers_on_the_same_ports_of_loopback():
    published = {name: service["ports"] for name, service in compose()["services"].items()}
    assert published == {
        name: [f"127.0.0.1:${{SERVERS_{name.upper()}_PORT:-{ports[0]}}}:{inside}"]
        for (name, ports), inside in zip(Settings().ports().items(), (5432, 9000, 5000, 4200), strict=True)
    }
    assert all(service["healthcheck"]["test"] for service in compose()["services"].values())


def test_compose_sets_the_same_variables_as_the_servers_without_docker(monkeypatch):
    monkeypatch.setattr(database, "programs", lambda: Path("/pg"))
    monkeypatch.setattr(database, "user", lambda: None)
    for server in services.servers(Settings(), SECRETS)[1:]:
        told = {name for name in server.env if name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))} - set(processes.QUIET)
        assert told <= set(compose()["services"][server.name]["environment"]), server.name
    assert re.findall("create database (.*);", compose()["configs"]["databases"]["content"]) == list(database.DATABASES)
    mine = services.mlflow_auth(Settings(), SECRETS).replace("pg@127.0.0.1:5442", "PASSWORD@postgres:5432")
    assert re.sub(r"\$\{.*?\}", "PASSWORD", compose()["configs"]["mlflow_auth"]["content"]) == mine


def test_compose_starts_mlflow_with_the_same_words(monkeypatch):
    (mlflow,) = (one for one in services.servers(Settings(), SECRETS)[2:3])
    told = re.sub(r"\$\{\w+:-(\d+)\}", r"\1", compose()["services"]["mlflow"]["command"]).replace(",mlflow:5000", "").split()
    assert told[1:] == [word if word != "127.0.0.1" else "0.0.0.0" for word in mlflow.command[1:]]


def test_the_example_of_the_environment_file_names_what_compose_asks_for():
    asked = set(re.findall(r"SERVERS_[A-Z0-9_]+", (ROOT / "compose.yml").read_text()))
    given = re.findall(r"^(SERVERS_[A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    assert set(given) == asked and len(given) == len(asked)


def test_compose_installs_the_versions_of_the_lock():
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    text = (ROOT / "compose.yml").read_text()
    told = dict(re.findall(r"([a-z0-9-]+)(?:\[auth\])?==(\S+)", text)) | {"prefect": re.search("prefect:([0-9.]+)-", text)[1]}
    assert {name: pins.get(name, told[name]) for name in told} == told and {"mlflow", "prefect", "boto3"} <= set(pins)


def free_settings(folder: Path, **more: int) -> Settings:
    """Ports that nobody has now: one block of seven, so that the store's four are in a row."""
    for first in range(20000 + os.getpid() % 1000 * 10, 60000, 10):
        if all(processes.is_free(port) for port in range(first, first + 7)):
            names = {"postgres_port": first + 4, "mlflow_port": first + 5, "prefect_port": first + 6}
            return Settings(folder.resolve(), s3_port=first, **{**names, **more})
    pytest.fail("no free ports")


def settings_as_variables(settings: Settings) -> dict[str, str]:
    return {f"SERVERS_{name.upper()}": str(value) for name, value in vars(settings).items()}
