"""The four servers of a team for real, on ports of their own: who gets in, what stands where, and what two workers save."""
from __future__ import annotations

import base64
import json
import os
import re
import shutil
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

from flows import bootstrap, database, processes, servers, services
from tests.test_fleet import Fleet
from tests.test_pipeline import new_project
from tests.test_servers import ROOT, free_settings, settings_as_variables


class Team:
    """The four servers, up, in a folder and on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.settings = free_settings(folder)
        self.environment = {**os.environ, **settings_as_variables(self.settings), "PYTHONPATH": str(ROOT)}

    def command(self, what: str) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", "flows.servers", what]
        folder = self.settings.folder.parent
        return subprocess.run(words, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=500)

    def client(self) -> dict[str, str]:
        """The environment of a client, as `env` prints it."""
        lines = self.command("env").stdout.splitlines()
        told = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        return {**os.environ, **told, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(self.settings.folder.parent / "client")}


@pytest.fixture(scope="module")
def team():
    if absent := services.missing():
        pytest.skip("; ".join(absent))
    folder = Path(tempfile.mkdtemp(prefix="team-"))  # any other pytest of this user closes the folder above tmp_path again
    folder.chmod(0o711)  # and user postgres has to pass
    team = Team(folder / ".servers")
    try:
        started = team.command("start")
        assert started.returncode == 0, started.stderr
        yield team
    finally:
        team.command("stop")
        shutil.rmtree(folder)


def status_of(url: str, password: str | None = None, host: str | None = None, body: dict | None = None, **headers: str) -> int:
    """The HTTP status that a request gets: with or without `user:password`, under its own or another Host."""
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


def test_mlflow_refuses_a_page_from_elsewhere(team):
    url = f"http://127.0.0.1:{team.settings.mlflow_port}/api/2.0/mlflow/experiments/create"
    headers = {"Content-Type": "application/json", "Origin": "http://evil.example"}
    assert status_of(url, mlflow_password(team), body={"name": "stolen"}, **headers) == 403


def test_nobody_gets_in_without_the_password(team):
    mlflow = f"http://127.0.0.1:{team.settings.mlflow_port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert [status_of(mlflow, password) for password in (None, "admin:wrong", mlflow_password(team))] == [401, 401, 200]
    prefect = f"http://127.0.0.1:{team.settings.prefect_port}/api/admin/version"
    secret = team.client()["PREFECT_API_AUTH_STRING"]
    assert [status_of(prefect, password) for password in (None, "thousandwords:wrong", secret)] == [401, 401, 200]
    assert 400 <= status_of(f"http://127.0.0.1:{team.settings.s3_port}/mlflow") < 500
    assert "password authentication failed" in database.sql(team.settings.postgres_port, "wrong", "select 1").stderr


def mlflow_password(team: Team) -> str:
    return "admin:" + services.read_passwords(team.settings.folder).mlflow_password


def test_every_port_is_open_on_loopback_only_and_every_secret_is_its_owners(team):
    own = {process for name in servers.NAMES for process in processes.ours(team.settings.folder, name)}
    listening = {c.laddr for process in own for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    wanted = {port for ports in team.settings.ports().values() for port in ports}
    assert {address.ip for address in listening} == {"127.0.0.1"} and {address.port for address in listening} == wanted
    secrets = [value.encode() for value in vars(services.read_passwords(team.settings.folder)).values()]
    for path in team.settings.folder.rglob("*"):
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "logs" not in path.parts, path


RECORD = """
import mlflow, pathlib
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("trial"))
pathlib.Path("words.txt").write_text("a red star")
client.log_artifact(run.info.run_id, "words.txt")
pathlib.Path("words.txt").unlink()
print(pathlib.Path(client.download_artifacts(run.info.run_id, "words.txt")).read_text())
"""


def test_an_artifact_goes_through_mlflow_to_the_store_and_back(team, tmp_path):
    done = run([sys.executable, "-c", RECORD], tmp_path, team.client())
    assert done.stdout.splitlines()[-1] == "a red star"
    assert [key.rpartition("/")[2] for key in keys_in(team, "mlflow")] == ["words.txt"]


def test_dvc_pushes_to_the_store_and_another_clone_pulls(team, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for clone in (first, second):
        clone.mkdir()
        run(["git", "init", "-q"], clone)
        run([sys.executable, "-m", "dvc", "init", "-q"], clone)
        run([sys.executable, "-m", "flows.servers", "remote"], clone, team.environment)
        assert stat.S_IMODE((clone / ".dvc/config.local").stat().st_mode) == 0o600
        assert not run(["git", "status", "--porcelain", ".dvc/config.local"], clone).stdout
    (first / "shards").mkdir()
    (first / "shards/large.bin").write_bytes(os.urandom(12 * 2**20))  # more than one part of a multipart upload
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


def test_a_flow_run_stands_in_postgres(team, tmp_path):
    (tmp_path / "trial.py").write_text(FLOW)
    run([sys.executable, "trial.py"], tmp_path, team.client())
    asked = "select r.state_type from flow_run r join flow f on f.id = r.flow_id where f.name = 'trial'"
    assert rows(team, asked, "prefect") == ["COMPLETED"]


def test_status_lets_itself_in_to_the_server_and_the_registry(team, tmp_path):
    run(["git", "init", "-q"], tmp_path)
    screen = run([sys.executable, "-m", "flows.status"], tmp_path, team.client()).stdout
    assert f"server    http://127.0.0.1:{team.settings.prefect_port}/api\n" in screen
    assert "          there are no work pools yet. Run: make deploy\n" in screen and "champion  none yet" in screen


def test_a_second_start_finds_them_running(team):
    before = team.command("status").stdout
    assert before.count("up, process") == 4
    assert "running already" in team.command("start").stdout and team.command("status").stdout == before


def test_two_stages_in_two_workers_take_two_thirds_of_their_sum_at_the_most(team, tmp_path):
    fleet = Fleet(tmp_path, team.client(), seconds=12)
    try:
        fleet.must(fleet.coordinator, "flows.bootstrap")
        fleet.start_workers()
        fleet.must(fleet.coordinator, "flows.fleet")
    finally:
        fleet.close()
        run([sys.executable, "-m", "prefect", "variable", "delete", bootstrap.OWNER], tmp_path, team.client())
    asked = "extract(epoch from max(end_time) - min(start_time)), extract(epoch from sum(end_time - start_time))"
    (both,) = rows(team, f"select {asked} from flow_run where name in ('left', 'right')", "prefect")
    wall, together = map(float, both.split("|"))
    print(f"two stages in two workers took {wall:.1f} s, one after the other {together:.1f} s: {wall / together:.2f}")
    assert wall <= 0.65 * together


@pytest.mark.slow
def test_two_workers_share_the_whole_pipeline_by_the_store(team, tmp_path):
    coordinator, *workers = clones_of(team, tmp_path, ("coordinator", "first", "second"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    client = {**team.client(), "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    flows = [sys.executable, "-m"]
    run([*flows, "flows.bootstrap"], coordinator, client)
    try:
        for clone in workers:
            run([*flows, "flows.workers", "start", "--runs", "1", "--name", clone.name], clone, client)
        said = run([*flows, "flows.fleet"], coordinator, client, timeout=2400).stdout
    finally:
        for clone in workers:
            run([*flows, "flows.workers", "stop"], clone, client)
    logs = ["".join(log.read_text() for log in (clone / ".prefect/workers").glob("*.log")) for clone in workers]
    ran = [found for log in logs for found in re.findall("Running stage '(\\w+)'", log)]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert sorted(ran) == sorted(stages) and all("Running stage" in log for log in logs)
    assert said.endswith(f"to workers: {', '.join(ordered(stages, said))}\n") and f"{len(stages)} of {len(stages)}" in said
    assert (coordinator / "results/report.html").is_file() and "Running stage" not in said
    asked = "select count(*) from flow_run r join flow f on f.id = r.flow_id where f.name = 'stage' and state_type = 'COMPLETED'"
    assert rows(team, asked, "prefect") == [str(len(stages))]
    parents = "select count(distinct value) from tags where key = 'mlflow.parentRunId'"
    assert int(rows(team, "select count(*) from runs", "mlflow")[0]) >= len(stages) and rows(team, parents, "mlflow") == ["1"]


def ordered(stages: dict, said: str) -> list[str]:
    """The stages in the order in which they are named at the end."""
    return sorted(stages, key=said.rpartition("to workers: ")[2].strip().split(", ").index)


def clones_of(team: Team, folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Clones of a project with the smoke preset; the default remote of each is the store."""
    origin = new_project(folder / "origin")
    shutil.copy(ROOT / "prefect.yaml", origin / "prefect.yaml")
    identity = ["-c", "user.name=test", "-c", "user.email=test"]
    run(["git", "add", "-A"], origin)
    run(["git", *identity, "commit", "-qm", "smoke"], origin)
    for name in names:
        run(["git", "clone", "-q", str(origin), name], folder)
        run([sys.executable, "-m", "flows.servers", "remote"], folder / name, team.environment)
        run([sys.executable, "-m", "dvc", "remote", "default", "--local", "servers"], folder / name)
    return [folder / name for name in names]


def test_killed_leaders_leave_nothing_behind_after_a_stop(team):
    for name in servers.NAMES:
        processes.leader(team.settings.folder, name).kill()
    orphans = [process for name in servers.NAMES for process in processes.ours(team.settings.folder, name)]
    stopped = team.command("stop")
    assert orphans and stopped.returncode == 0, stopped.stderr
    assert not [process for name in servers.NAMES for process in processes.ours(team.settings.folder, name)]
    assert all(processes.is_free(port) for ports in team.settings.ports().values() for port in ports)
    assert team.command("status").stdout.count("down") == 4


def rows(team: Team, asked: str, name: str) -> list[str]:
    secret = services.read_passwords(team.settings.folder).postgres_password
    return database.sql(team.settings.postgres_port, secret, asked, name).stdout.split()


def keys_in(team: Team, bucket: str) -> list[str]:
    import boto3

    told = services.dvc_remote(team.settings, services.read_passwords(team.settings.folder))
    client = boto3.client(
        "s3",
        endpoint_url=told["endpointurl"],
        region_name=told["region"],
        aws_access_key_id=told["access_key_id"],
        aws_secret_access_key=told["secret_access_key"],
    )
    return [found["Key"] for found in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def run(words: list[str], folder: Path, environment: dict[str, str] | None = None, timeout: int = 300):
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
