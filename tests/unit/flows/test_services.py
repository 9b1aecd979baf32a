"""The servers of a team: settings, passwords, commands, and compose.yml. No server is started."""

import re
import stat
from configparser import RawConfigParser, SectionProxy
from pathlib import Path

import pytest
import yaml

from flows.services import postgres_server, s3_server, specs
from flows.services.commands import export_lines
from flows.services.specs import Passwords, ServicesConfig
from tests.helpers.paths import ROOT
from thousandwords.core.errors import UserError

TEAM = ServicesConfig(is_team=True)
SECRETS = Passwords("pg", "s3key", "mlpw", "mlsecret", "prpw")


def test_ports_and_folder_come_from_the_environment_and_a_folder_stays_what_it_was(tmp_path):
    variables = {"SERVERS_MLFLOW_PORT": "5055", "SERVERS_FOLDER": str(tmp_path)}
    assert specs.read_settings(variables).ports() == {"mlflow": 5055, "prefect": 4200}
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    assert specs.read_settings(variables) == ServicesConfig(tmp_path, 5442, 9000, 5055, 4200, is_team=True)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SERVERS_S3_PORT": "many"}, "SERVERS_S3_PORT is 'many'; it must be a port number"),
        ({"SERVERS_MLFLOW_PORT": "80"}, "SERVERS_MLFLOW_PORT is 80; ports from 1024 to 65535 can be used"),
        ({"SERVERS_MLFLOW_PORT": "4200"}, "SERVERS_PREFECT_PORT and SERVERS_MLFLOW_PORT are both 4200;"),
    ],
)
def test_an_invalid_port_is_rejected_with_the_name_of_its_setting(variables, message):
    with pytest.raises(UserError, match=re.escape(message)):
        specs.read_settings(variables)


def test_passwords_are_created_once_for_their_owner_only(tmp_path):
    with pytest.raises(UserError, match="has no passwords yet. Run: make servers"):
        specs.read_passwords(tmp_path)
    first = specs.ensure_passwords(tmp_path)
    assert specs.ensure_passwords(tmp_path) == first and len(set(vars(first).values())) == 5
    assert stat.S_IMODE(specs.password_file(tmp_path).stat().st_mode) == 0o600
    assert {len(value) for value in vars(first).values()} == {48}


def test_clients_get_each_address_and_password_as_a_line_for_the_shell():
    lines = export_lines(specs.client_environment(ServicesConfig(), SECRETS)).splitlines()
    assert lines == [
        "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000",
        "export MLFLOW_TRACKING_USERNAME=admin",
        "export MLFLOW_TRACKING_PASSWORD=mlpw",
        "export PREFECT_API_URL=http://127.0.0.1:4200/api",
        "export PREFECT_API_AUTH_STRING=thousandwords:prpw",
    ]
    assert export_lines({"A": "x y"}) == "export A='x y'"


@pytest.fixture
def postgres(monkeypatch):
    monkeypatch.setattr(postgres_server, "programs", lambda: Path("/pg"))
    monkeypatch.setattr(postgres_server, "user", lambda: None)


def read_programs(settings: ServicesConfig) -> dict[str, SectionProxy]:
    """{server: its section of supervisord.conf}"""
    read = RawConfigParser()
    read.read_string(specs.supervisor_file(settings, SECRETS))
    return {name.partition(":")[2]: read[name] for name in read.sections() if name.startswith("program:")}


@pytest.mark.parametrize("settings", [ServicesConfig(Path("/servers")), TEAM], ids=["SQLite", "team"])
def test_no_password_is_in_a_command_line_and_no_client_setting_reaches_a_server(
    postgres, monkeypatch, settings
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert "MLFLOW_TRACKING_URI" not in specs.environment()
    programs = read_programs(settings)
    assert list(programs) == list(settings.ports())
    for name, program in programs.items():
        assert not any(secret in program["command"] for secret in list(vars(SECRETS).values())[1:])
        assert "127.0.0.1" in program["command"] or name == "s3"  # the store's own default


def variables(program: SectionProxy) -> dict[str, str]:
    return dict(re.findall('(\\w+)="(.*)"', program["environment"]))


def test_the_file_of_the_supervisor_names_every_program_with_its_environment(postgres, tmp_path):
    programs = read_programs(ServicesConfig(tmp_path / "100%", is_team=True))
    keys = {"AWS_ACCESS_KEY_ID": "thousandwords:team", "AWS_SECRET_ACCESS_KEY": "s3key"}
    assert variables(programs["s3"]) == {**keys, "AWS_DEFAULT_REGION": "us-east-1"}
    assert programs["postgres"]["stopsignal"] == "INT" and programs["mlflow"]["stopsignal"] == "TERM"
    assert programs["prefect"]["stdout_logfile"] == f"{tmp_path}/100%%/logs/prefect.log"


def test_only_the_proxy_of_the_store_has_a_port(tmp_path):
    files = s3_server.configuration(tmp_path, "0.0.0.0", 9000, "one:two", "key", "salt")
    ports = {name: re.findall(r"bind_port = (\d+)", text) for name, text in files.items()}
    assert ports.pop("proxy.conf") == ["9000"] and ports.pop("swift.conf") == []
    assert {int(port) for (port,) in ports.values()} == set(s3_server.PARTS.values())
    assert "user_one_two = key .admin" in files["proxy.conf"]
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID is 'team'; it must be account:user"):
        s3_server.configuration(tmp_path, "127.0.0.1", 9000, "team", "key", "salt")


def test_a_folder_that_user_postgres_may_not_enter_is_rejected_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres_server, "user", lambda: "postgres")
    (tmp_path / "closed").mkdir(mode=0o700)
    message = "PostgreSQL runs as user postgres, which may not enter .*/closed. Set SERVERS_FOLDER"
    with pytest.raises(UserError, match=message):
        postgres_server.make_folder(tmp_path / "closed" / "postgres", "secret")
    assert not list((tmp_path / "closed").iterdir())


def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yml").read_text())


def test_compose_names_the_same_servers_on_the_same_ports_of_loopback():
    inside = {"postgres": 5432, "s3": 9000, "mlflow": 5000, "prefect": 4200}
    assert {name: service["ports"] for name, service in compose()["services"].items()} == {
        name: [f"127.0.0.1:${{SERVERS_{name.upper()}_PORT:-{port}}}:{inside[name]}"]
        for name, port in TEAM.ports().items()
    }
    assert all(service["healthcheck"]["test"] for service in compose()["services"].values())


def test_compose_has_the_same_variables_and_commands_as_the_servers_without_docker(postgres):
    programs = read_programs(TEAM)
    for name in ("s3", "mlflow", "prefect"):
        assert set(variables(programs[name])) <= set(compose()["services"][name]["environment"]), name
    assert re.findall("create database (.*);", compose()["configs"]["databases"]["content"]) == list(
        postgres_server.DATABASES
    )
    expected = specs.mlflow_auth(TEAM, SECRETS).replace("pg@127.0.0.1:5442", "PASSWORD@postgres:5432")
    assert re.sub(r"\$\{.*?\}", "PASSWORD", compose()["configs"]["mlflow_auth"]["content"]) == expected
    own = programs["mlflow"]["command"].split()
    command = re.sub(r"\$\{\w+:-(\d+)\}", r"\1", compose()["services"]["mlflow"]["command"])
    command = command.replace(",mlflow:5000", "").split()
    assert command[1:] == [word if word != "127.0.0.1" else "0.0.0.0" for word in own[1:]]


def test_the_example_environment_file_names_every_variable_of_compose():
    required = set(re.findall(r"SERVERS_[A-Z0-9_]+", (ROOT / "compose.yml").read_text()))
    names = re.findall(r"^(SERVERS_[A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    assert set(names) == required and len(names) == len(required)


def test_compose_installs_the_versions_of_the_lock():
    lock, text = (ROOT / "requirements.lock").read_text(), (ROOT / "compose.yml").read_text()
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, flags=re.MULTILINE))
    versions = dict(re.findall(r"([a-z0-9-]+)(?:\[auth\])?==(\S+)", text))
    versions["prefect"] = re.search("prefect:([0-9.]+)-", text)[1]
    assert {name: pins.get(name, versions[name]) for name in versions} == versions
    assert {"mlflow", "prefect", "boto3"} <= set(pins)
