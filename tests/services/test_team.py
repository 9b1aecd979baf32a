"""The four real servers of a team on free ports: access, stored data, and the speed of two workers."""

import base64
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from flows import deploy
from flows.services import postgres_server, specs
from flows.services.commands import is_free, processes_of
from tests.helpers.smoke_project import new_project
from tests.services.test_fleet import Fleet
from tests.services.test_servers import ROOT, free_settings, settings_as_variables


class Team:
    """The four servers, running, in their own folder and on free ports."""

    def __init__(self, folder: Path) -> None:
        self.settings = free_settings(folder, is_team=True)
        self.environment = {**os.environ, **settings_as_variables(self.settings), "PYTHONPATH": str(ROOT)}

    def command(self, *what: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "flows.services", *what]
        folder = self.settings.folder.parent
        return subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=700
        )

    def client(self) -> dict[str, str]:
        """The environment of a client, as `env` prints it."""
        lines = self.command("env").stdout.splitlines()
        variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        return {
            **os.environ,
            **variables,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.settings.folder.parent / "client"),
        }


@pytest.fixture(scope="module")
def team():
    if missing := specs.missing_requirements():
        pytest.skip("; ".join(missing))
    # not tmp_path: another pytest of this user removes the permissions of its parent, which user postgres needs
    folder = Path(tempfile.mkdtemp(prefix="team-"))
    folder.chmod(0o711)
    team = Team(folder / ".servers")
    try:
        started = team.command("start", "--team")
        assert started.returncode == 0, started.stderr
        yield team
    finally:
        team.command("stop")
        shutil.rmtree(folder)


def status_of(
    url: str, password: str | None = None, host: str | None = None, body: dict | None = None, **headers: str
) -> int:
    """The HTTP status of a request, with or without `user:password`, with its own or another Host header."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={**({"Host": host} if host else {}), **headers})
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(password.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_mlflow_answers_to_its_own_names_only(team):
    url, password = f"http://127.0.0.1:{team.settings.mlflow_port}/", mlflow_password(team)
    hosts = ("evil.example", "169.254.169.254", "10.0.0.1", f"localhost:{team.settings.mlflow_port}")
    assert [status_of(url, password, host) for host in hosts] == [403, 403, 403, 200]


def test_mlflow_rejects_a_page_of_another_origin(team):
    url = f"http://127.0.0.1:{team.settings.mlflow_port}/api/2.0/mlflow/experiments/create"
    headers = {"Content-Type": "application/json", "Origin": "http://evil.example"}
    assert status_of(url, mlflow_password(team), body={"name": "stolen"}, **headers) == 403


def test_no_request_is_accepted_without_the_password(team):
    mlflow = f"http://127.0.0.1:{team.settings.mlflow_port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert [status_of(mlflow, password) for password in (None, "admin:wrong", mlflow_password(team))] == [
        401,
        401,
        200,
    ]
    prefect = f"http://127.0.0.1:{team.settings.prefect_port}/api/admin/version"
    secret = team.client()["PREFECT_API_AUTH_STRING"]
    assert [status_of(prefect, password) for password in (None, "thousandwords:wrong", secret)] == [
        401,
        401,
        200,
    ]
    assert 400 <= status_of(f"http://127.0.0.1:{team.settings.s3_port}/mlflow") < 500
    assert (
        "password authentication failed"
        in postgres_server.sql(team.settings.postgres_port, "wrong", "select 1").stderr
    )


def test_prefects_page_finds_its_server_at_any_port(team):
    with urllib.request.urlopen(f"http://127.0.0.1:{team.settings.prefect_port}/ui-settings") as answer:
        assert json.load(answer)["api_url"] == "/api"


def test_only_the_four_servers_listen_and_each_asks_for_a_password(team):
    """Probed by what is stored: the paths under which the store's own servers give a list or an object."""
    own = {process.pid for process in processes_of(team.settings.folder)}
    listening = {
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.pid in own and connection.status == psutil.CONN_LISTEN
    }
    paths = ["/", "/mlflow", "/dvc", "/api/admin/version", "/api/2.0/mlflow/experiments/get?experiment_id=0"]
    for kind in ("account", "container"):
        for database in (team.settings.folder / "s3").glob(f"devices/disk/{kind}s/**/*.db"):
            row = sqlite3.connect(database).execute(f"select * from {kind}_stat")
            names = dict(zip((column[0] for column in row.description), row.fetchone(), strict=True))
            partition = database.relative_to(team.settings.folder / "s3/devices/disk").parts[1]
            stored = "/".join(names[name] for name in ("account", "container") if name in names)
            paths.append(f"/disk/{partition}/{stored}?format=json")
    assert len(paths) >= 8
    prefect = team.settings.prefect_port  # its page, without data, answers to every path that is not its API
    answered = {
        (address.port, path)
        for address in listening - {("127.0.0.1", team.settings.postgres_port)}
        for path in paths
        if (address.port != prefect or path.startswith("/api/"))
        and status_of(f"http://127.0.0.1:{address.port}{path}") < 400
    }
    assert not answered
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == set(team.settings.ports().values())


def mlflow_password(team: Team) -> str:
    return "admin:" + specs.read_passwords(team.settings.folder).mlflow_password


def test_every_secret_is_readable_by_its_owner_only(team):
    secrets = [value.encode() for value in vars(specs.read_passwords(team.settings.folder)).values()]
    for path in team.settings.folder.rglob("*"):
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "logs" not in path.parts, path


RECORD = """
import mlflow, pathlib
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("trial"))
pathlib.Path("caption.txt").write_text("a red star")
client.log_artifact(run.info.run_id, "caption.txt")
pathlib.Path("caption.txt").unlink()
print(pathlib.Path(client.download_artifacts(run.info.run_id, "caption.txt")).read_text())
"""


def test_an_artifact_goes_through_mlflow_to_the_store_and_back(team, tmp_path):
    result = run([sys.executable, "-c", RECORD], tmp_path, team.client())
    assert result.stdout.splitlines()[-1] == "a red star"
    assert [key.rpartition("/")[2] for key in keys_in(team, "mlflow")] == ["caption.txt"]


def test_dvc_pushes_to_the_store_and_another_clone_pulls(team, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for clone in (first, second):
        clone.mkdir()
        run(["git", "init", "-q"], clone)
        run([sys.executable, "-m", "dvc", "init", "-q"], clone)
        run([sys.executable, "-m", "flows.services", "remote"], clone, team.environment)
        assert stat.S_IMODE((clone / ".dvc/config.local").stat().st_mode) == 0o600
        assert not run(["git", "status", "--porcelain", ".dvc/config.local"], clone).stdout
    (first / "shards").mkdir()
    (first / "shards/large.bin").write_bytes(
        os.urandom(12 * 2**20)
    )  # more than one part of a multipart upload
    (first / "shards/small name é.txt").write_text("hi")
    run([sys.executable, "-m", "dvc", "add", "-q", "shards"], first)
    run([sys.executable, "-m", "dvc", "push", "-q", "-r", "servers"], first)
    (second / "shards.dvc").write_bytes((first / "shards.dvc").read_bytes())
    run([sys.executable, "-m", "dvc", "pull", "-q", "-r", "servers"], second)
    assert (second / "shards/large.bin").read_bytes() == (first / "shards/large.bin").read_bytes()
    assert (second / "shards/small name é.txt").read_text() == "hi"


FLOW = """
from prefect import flow
@flow(name="trial")
def trial(): return 3
trial()
"""


def test_a_flow_run_is_stored_in_postgres(team, tmp_path):
    (tmp_path / "trial.py").write_text(FLOW)
    run([sys.executable, "trial.py"], tmp_path, team.client())
    query = "select r.state_type from flow_run r join flow f on f.id = r.flow_id where f.name = 'trial'"
    assert rows(team, query, "prefect") == ["COMPLETED"]


def test_status_has_access_to_the_server_and_the_registry(team, tmp_path):
    run(["git", "init", "-q"], tmp_path)
    output = run([sys.executable, "-m", "flows.status"], tmp_path, team.client()).stdout
    assert f"server    http://127.0.0.1:{team.settings.prefect_port}/api\n" in output
    assert (
        "          there are no work pools yet. Run: make deploy\n" in output
        and "champion  none yet" in output
    )


def test_a_second_start_reports_that_they_run_already(team):
    before = team.command("status").stdout
    assert before.count("up, process") == 4
    assert "running already" in team.command("start").stdout and team.command("status").stdout == before


@pytest.mark.slow
def test_two_stages_on_two_workers_take_at_most_two_thirds_of_their_sum(team, tmp_path):
    fleet = Fleet(tmp_path, team.client(), seconds=12)
    try:
        fleet.must(fleet.coordinator, "flows.deploy")
        fleet.start_workers()
        fleet.must(fleet.coordinator, "flows.fleet")
    finally:
        fleet.close()
        run([sys.executable, "-m", "prefect", "variable", "delete", deploy.OWNER], tmp_path, team.client())
    query = (
        "extract(epoch from max(end_time) - min(start_time)), extract(epoch from sum(end_time - start_time))"
    )
    (row,) = rows(team, f"select {query} from flow_run where name in ('first', 'other')", "prefect")
    wall, total = map(float, row.split("|"))
    print(
        f"two stages in two workers took {wall:.1f} s, one after the other {total:.1f} s: {wall / total:.2f}"
    )
    assert wall <= 0.65 * total


@pytest.mark.slow
def test_two_workers_share_the_whole_pipeline_through_the_store(team, tmp_path):
    coordinator, *workers = clones_of(team, tmp_path, ("coordinator", "first", "second"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    client = {**team.client(), "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    flows = [sys.executable, "-m"]
    run([*flows, "flows.deploy"], coordinator, client)
    try:
        for clone in workers:
            run([*flows, "flows.workers", "start", "--runs", "1", "--name", clone.name], clone, client)
        output = run([*flows, "flows.fleet"], coordinator, client, timeout=2400).stdout
    finally:
        for clone in workers:
            run([*flows, "flows.workers", "stop"], clone, client)
    logs = [
        "".join(log.read_text() for log in (clone / ".prefect/workers").glob("*.log")) for clone in workers
    ]
    ran = [stage for log in logs for stage in re.findall("Running stage '(\\w+)'", log)]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert sorted(ran) == sorted(stages) and all("Running stage" in log for log in logs)
    assert (
        output.endswith(f"to workers: {', '.join(ordered(stages, output))}\n")
        and f"{len(stages)} of {len(stages)}" in output
    )
    assert (coordinator / "results/report.html").is_file() and "Running stage" not in output
    query = "select count(*) from flow_run r join flow f on f.id = r.flow_id where f.name = 'stage' and state_type = 'COMPLETED'"
    assert rows(team, query, "prefect") == [str(len(stages))]
    parents = "select count(distinct value) from tags where key = 'mlflow.parentRunId'"
    assert int(rows(team, "select count(*) from runs", "mlflow")[0]) >= len(stages) and rows(
        team, parents, "mlflow"
    ) == ["1"]


def ordered(stages: dict, output: str) -> list[str]:
    """The stages in the order of the last line."""
    return sorted(stages, key=output.rpartition("to workers: ")[2].strip().split(", ").index)


def clones_of(team: Team, folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Clones of a project with the smoke preset; their default remote is the store."""
    origin = new_project(folder / "origin")
    shutil.copy(ROOT / "prefect.yaml", origin / "prefect.yaml")
    identity = ["-c", "user.name=test", "-c", "user.email=test"]
    run(["git", "add", "-A"], origin)
    run(["git", *identity, "commit", "-qm", "smoke"], origin)
    for name in names:
        run(["git", "clone", "-q", str(origin), name], folder)
        run([sys.executable, "-m", "flows.services", "remote"], folder / name, team.environment)
        run([sys.executable, "-m", "dvc", "remote", "default", "--local", "servers"], folder / name)
    return [folder / name for name in names]


def test_a_stop_ends_what_a_kill_left_behind(team):
    everyone = processes_of(team.settings.folder)
    for process in everyone:
        if "supervisor.supervisord" in " ".join(process.cmdline()):
            process.kill()
    stopped = team.command("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert len(everyone) > 10 and not processes_of(team.settings.folder)
    assert all(is_free(port) for port in team.settings.ports().values())
    assert team.command("status").stdout.count("down") == 4


def rows(team: Team, query: str, name: str) -> list[str]:
    secret = specs.read_passwords(team.settings.folder).postgres_password
    return postgres_server.sql(team.settings.postgres_port, secret, query, name).stdout.split()


def keys_in(team: Team, bucket: str) -> list[str]:
    import boto3

    remote = specs.dvc_remote(team.settings, specs.read_passwords(team.settings.folder))
    client = boto3.client(
        "s3",
        endpoint_url=remote["endpointurl"],
        region_name=remote["region"],
        aws_access_key_id=remote["access_key_id"],
        aws_secret_access_key=remote["secret_access_key"],
    )
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None, timeout: int = 300):
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result
