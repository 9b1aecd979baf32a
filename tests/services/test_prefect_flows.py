"""The flows on a real Prefect server, one for all these tests: the pipeline, what runs it, and what is said of its runs."""

import contextlib
import email
import email.policy
import http.server
import json
import signal
import socketserver
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import mlflow
import prefect
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.registry
from flows import deploy, generate, nightly, status, sweep
from flows.dvc.git import changed_files, commit_if_all
from flows.workers import heartbeat
from tests.helpers.images import write
from tests.helpers.mlflow_server import new_mlflow_database
from tests.helpers.prefect_server import ROOT, Server, run, tiny_project, wait_for
from tests.helpers.records import write_record
from tests.helpers.registering import run_git
from tests.pipeline.test_run_local import meeting
from tests.reliability.test_concurrency import DVC, UNTIL_GO, begun, start, wait, writer
from thousandwords.core.errors import UserError


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server; what a test finds in it may be another's."""
    server = Server(tmp_path_factory.mktemp("prefect"))
    yield server
    server.stop(signal.SIGKILL)  # one that is asked takes five seconds


# --- notifications of ended runs, to a webhook and a mailbox on this machine: first, as they report every run that ends

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


# --- the pipeline


def test_the_flow_runs_what_changed_publishes_it_and_then_finds_nothing_to_do(tmp_path, server):
    new_mlflow_database(tmp_path / ".mlflow/mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/.mlflow/mlflow.db")
    experiment = client.create_experiment("thousandwords", artifact_location=str(tmp_path))
    parent, child = (client.create_run(experiment).info.run_id for _ in range(2))
    files = {"metrics.json": {"generator": {"val_loss_image": 1.5, "other": 2}}, "report.html": ""}
    outs = [f"results/{name}" for name in files]
    write(tmp_path / "made/results", {name: json.dumps(content) for name, content in files.items()})
    write(tmp_path / "made", {"dvc.yaml": yaml.safe_dump({"stages": {"evaluate": {"outs": outs}}})})
    write_record(tmp_path / "made", "evaluate", run_id=child, parent_run_id=parent)
    (tmp_path / "made/dvc.yaml").unlink()  # DVC would read it, too
    # of two stages before it, b and c, and a, which these need
    link = "echo $THOUSANDWORDS_FLOW_RUN > link"  # a tag of the MLflow run
    evaluate = {"cmd": f"cp -r made/results . && {link}", "deps": ["a", "d"], "outs": outs}
    stages = {**meeting(), "evaluate": evaluate}  # two of them end only if both run at the same time
    project = tiny_project(tmp_path, stages)

    first = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (project / "d").read_text() == "1\n1\n"
    assert "evaluate | Running stage 'evaluate':" in first.stderr + first.stdout
    latest = server.runs()[-1]
    task_runs = server.task_runs(latest["id"])
    states = {name: task_run["state_name"] for name, task_run in task_runs.items()}
    assert states == dict.fromkeys(stages, "Completed")
    names = {task_run["id"]: name for name, task_run in task_runs.items()}
    edges = {
        (names[upstream["id"]], name)
        for name, task_run in task_runs.items()
        for upstream in task_run["task_inputs"].get("wait_for", [])
    }
    assert edges == {
        ("first", "left"),
        ("first", "right"),
        ("left", "last"),
        ("right", "last"),
        ("last", "evaluate"),
    }
    assert latest["name"] == "unknown settings no commit seed unknown"

    found = server.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [latest["id"]]}}})
    artifacts = {artifact["key"]: artifact["data"] for artifact in found}
    assert json.loads(artifacts["headline"]) == [{"figure": "generator.val_loss_image", "value": 1.5}]
    runs = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs"
    assert (
        f"{runs}/{parent})" in artifacts["mlflow"]
        and f"{runs}/{child}/artifacts/report.html)" in artifacts["report"]
    )
    assert (project / "link").read_text().endswith(f"/flow-runs/flow-run/{latest['id']}\n")
    assert any("left | " in line for line in server.lines(latest["id"]))

    second = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    output = second.stdout + second.stderr
    assert second.returncode == 0 and output.count("| unchanged") == 5 and "Running stage" not in output
    assert server.task_runs(server.runs()[-1]["id"]) == {}


TRY = "echo $(date +%s.%N) >> {name}.tries; {end}"


def test_a_stage_is_retried_as_often_as_its_table_says(tmp_path, server):
    """A stage that passes at last, one that always fails, and one that a user has to fix: 2, 3, 1 attempts."""
    ends = {
        "passing": "test $(wc -l < passing.tries) -ge 2 && touch passing",
        "failing": "exit 1",
        "permanent": "exit 2",
    }
    stages = {name: {"cmd": TRY.format(name=name, end=end), "outs": [name]} for name, end in ends.items()}
    stages["after"] = {"cmd": "cat failing > after", "deps": ["failing"], "outs": ["after"]}
    place = {"retries": 2, "retry_seconds": 0.5}
    project = tiny_project(tmp_path, stages, {"parallel": 3, "stages": dict.fromkeys(ends, place)})

    result = run(project, "flows.pipeline", PREFECT_API_URL=server.api)

    tries = {name: len((project / f"{name}.tries").read_text().split()) for name in ends}
    assert tries == {"passing": 2, "failing": 3, "permanent": 1}
    assert result.returncode == 1 and "pipeline: stage " in result.stderr and not (project / "after").exists()
    latest = server.runs()[-1]
    task_runs = server.task_runs(latest["id"])
    assert latest["state_type"] == "FAILED" and set(task_runs) == set(ends)
    assert task_runs["passing"]["run_count"] == 2 and task_runs["failing"]["run_count"] == 3
    waits = planned_waits(server, task_runs["failing"])
    assert waits == pytest.approx([0.5, 1], rel=0.2)


def planned_waits(server: Server, task_run: dict) -> list[float]:
    """Seconds from each failure to the retry that was planned for it."""
    moment = datetime.fromisoformat
    waiting = [state for state in server.states(task_run) if state["name"] == "AwaitingRetry"]
    return sorted(
        (moment(state["state_details"]["scheduled_time"]) - moment(state["timestamp"])).total_seconds()
        for state in waiting
    )


def test_a_flow_waits_for_a_plain_dvc_and_then_finds_all_stages_done(tmp_path, server):
    stages = {"first": writer("first", work=UNTIL_GO), "second": writer("second", "first")}
    project = tiny_project(tmp_path, stages)
    dvc = start(project, *DVC, "repro")
    wait_for(lambda: begun(project), 60)
    flow = start(project, sys.executable, "-m", "flows.pipeline", PREFECT_API_URL=server.api)
    line = next(line for line in flow.stdout if "waits for it" in line)
    assert f"another `dvc` is running in this folder (process {dvc.pid}); this run waits for it" in line
    (project / "go").touch()
    assert wait(dvc)[0] == 0
    code, output = wait(flow)
    assert code == 0 and output.count("| unchanged") == 2, output
    assert begun(project) == ["first", "second"] and not (project / "clashes").exists()


# --- nightly, generate, sweep, status, with a stand-in for the registry, which has its own tests


@pytest.fixture
def folder(server, tmp_path, monkeypatch):
    """An empty working folder, with that server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    new_mlflow_database(tmp_path / ".mlflow/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/.mlflow/mlflow.db")
    with temporary_settings({PREFECT_API_URL: server.api}):
        yield tmp_path


def replace_registry(monkeypatch, **functions) -> None:
    """Replace flows/registry/commands.py by these functions."""
    stand_in = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, "flows.registry.commands", stand_in)
    monkeypatch.setattr(flows.registry, "commands", stand_in, raising=False)


def test_a_nightly_run_updates_data_runs_stale_stages_and_promotes(folder, monkeypatch):
    stage = {"cmd": "cp data/new package", "deps": ["data/new"], "outs": ["package"]}
    write(tiny_project(folder, {"package_model": stage}), {"elsewhere": "monday", "data/.keep": ""})
    import_url = [sys.executable, "-m", "dvc", "import-url", "-q", str(folder / "elsewhere"), "data/new"]
    subprocess.run(import_url, check=True)
    champions = []
    replace_registry(monkeypatch, register=lambda: "7", promote=lambda version: champions.append(version))
    (folder / "elsewhere").write_text("tuesday")

    first = nightly.nightly()

    assert first == {"ran": ["package_model"], "version": "7", "refusals": []}
    assert (folder / "package").read_text() == "tuesday" and champions == ["7"]
    assert nightly.nightly()["ran"] == []


def test_a_version_that_the_gate_rejects_is_reported_and_is_no_failure(folder, monkeypatch, server):
    tiny_project(folder, {"package_model": {"cmd": "touch package", "outs": ["package"]}})
    reason = "- psnr_hard is 20.1, the champion's 30.1"

    def reject(version):
        raise UserError(f"version 8 was not promoted against champion 7:\n{reason}")

    replace_registry(monkeypatch, register=lambda: "8", promote=reject)
    assert reason in nightly.nightly()["refusals"]
    query = {"artifacts": {"key": {"any_": ["champion"]}}, "sort": "CREATED_DESC"}
    decision = server.ask("artifacts/filter", query)[0]["data"]
    assert "version 8 was not promoted" in decision and "psnr_hard is 20.1" in decision
    assert server.runs()[-1]["state_type"] == "COMPLETED"


def test_a_pipeline_that_fails_registers_nothing(folder, monkeypatch):
    tiny_project(folder, {"package_model": {"cmd": "exit 2", "outs": ["package"]}})
    replace_registry(monkeypatch, register=lambda: pytest.fail("it was registered"))
    with pytest.raises(RuntimeError, match="stage package_model failed with code 2"):
        nightly.nightly()


@pytest.fixture
def clone(tmp_path):
    """A committed project with an imported file."""
    write(
        tmp_path, dict.fromkeys(("dvc.lock", "data/photos.dvc", "results/headline.json", "params.yaml"), "1")
    )
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        run_git(tmp_path, *args)
    return tmp_path


def test_a_nightly_run_commits_its_outputs_and_no_change_of_a_user(clone):
    assert commit_if_all(nightly.may_commit, "night", clone) is None
    write(clone, dict.fromkeys(("dvc.lock", "data/photos.dvc", "results/headline.json", "notes.txt"), "2"))
    commit = commit_if_all(nightly.may_commit, "night", clone)
    assert commit and run_git(clone, "log", "--format=%s") == "night\nfirst"
    assert changed_files(root=clone) == ["notes.txt"]

    write(clone, {"dvc.lock": "3", "params.yaml": "3"})
    assert commit_if_all(nightly.may_commit, "night", clone) is None
    assert changed_files("-uno", root=clone) == ["dvc.lock", "params.yaml"]


def test_the_champion_generates_images_of_each_prompt(folder, monkeypatch, package_folder):
    fetched = []

    def fetch(alias, target):
        fetched.append((alias, str(target)))
        return package_folder

    replace_registry(monkeypatch, FETCHED=Path(".store/registry"), fetch=fetch)
    grids = generate.generate(["a small red star", "--help me"], candidates=2, seed=3)
    assert fetched == [("champion", ".store/registry")] and len(grids) == 2
    for grid in grids:
        assert Path(grid).is_file() and len(list(Path(grid).with_suffix("").glob("*.png"))) == 2


def test_a_sweep_compares_its_experiments_and_leaves_the_folder_unchanged(folder):
    square = "x=$(cut -d' ' -f2 params.yaml); echo '{\"y\": '$((x * x))'}' > m.json"
    stage = {"cmd": "sh square.sh", "params": ["x"], "metrics": [{"m.json": {"cache": False}}]}
    tiny_project(folder, {"evaluate": stage})
    write(folder, {"square.sh": square, "params.yaml": "x: 1\n", ".gitignore": "/.mlflow/\n/.prefect/\n"})
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "all")

    rows = sweep.sweep({"x": [2, 3]})

    assert [(row["x"], row["y"]) for row in rows] == [(2, 4), (3, 9)]
    assert yaml.safe_load((folder / "params.yaml").read_text()) == {"x": 1}
    assert not (folder / "m.json").exists()
    client = mlflow.MlflowClient(f"sqlite:///{folder}/.mlflow/mlflow.db")
    runs = client.search_runs(["1"], "tags.sweep LIKE 'sweep-%'")
    assert {run.data.params["x"]: run.data.metrics for run in runs} == {"2": {"y": 4.0}, "3": {"y": 9.0}}


def test_status_shows_runs_champion_and_stale_stages(folder, monkeypatch):
    tiny_project(folder, {"first": {"cmd": "touch a", "outs": ["a"]}})
    replace_registry(monkeypatch, show=lambda: ["version 2  sound @champion", "version 1  sound"])
    monkeypatch.setattr(status.gpu_lock, "visible", lambda: ["0"])
    output = status.status()
    assert "server    http://127.0.0.1:" in output and "nothing runs" in output
    assert "GPU 0 is free" in output and "version 1" not in output
    assert "champion  version 2  sound @champion" in output
    assert "stages    stale: first" in output and "metrics   none yet" in output


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "none (PREFECT_API_URL is not set)"),
        ("http://127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer (ConnectError)"),
    ],
)
def test_status_works_without_a_server_and_says_so(tmp_path, monkeypatch, url, message):
    def show():
        raise UserError("the registry does not answer")

    monkeypatch.chdir(tmp_path)
    replace_registry(monkeypatch, show=show)
    with temporary_settings({PREFECT_API_URL: url}):
        output = status.status()
    assert message in output and "champion  the registry does not answer" in output
    assert "stages    unknown: " in output


# --- the heartbeat process; what counts as silence: tests/unit/flows


@pytest.fixture
def client(server):
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def create_run(server):
    """A function that creates a run on the server; the runs are completed after the test, since others share the server."""
    run_ids = []

    def create(kind: str = "RUNNING") -> str:
        flow = server.ask("flows/", {"name": "watched"})["id"]
        run_id = server.ask("flow_runs/", {"flow_id": flow, "state": {"type": "PENDING"}})["id"]
        run_ids.append(run_id)
        server.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": "RUNNING"}})
        if kind != "RUNNING":
            server.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": kind}})
        return run_id

    yield create
    for run_id in run_ids:
        server.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": "COMPLETED"}, "force": True})


def test_a_heartbeat_is_a_life_sign_whatever_its_clock_says(client, create_run):
    run_id = create_run()

    def now() -> heartbeat.Run:
        return heartbeat.read_runs(client)[run_id]

    wait_for(lambda: now().sign[2] >= 2, 30, "its states are not there as events")
    for year in (2001, 2101):
        before, resource = now(), {"prefect.resource.id": f"prefect.flow-run.{run_id}"}
        event = Event(
            event="prefect.flow-run.heartbeat", resource=resource, occurred=f"{year}-01-01T00:00:00Z"
        )
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
        wait_for(lambda before=before: now() != before, 30, f"a heartbeat of {year} does not arrive")


def test_a_silent_run_is_crashed_a_cancelling_one_is_cancelled_and_a_finished_one_stays(
    server, client, create_run
):
    runs = {kind: create_run(kind) for kind in ("RUNNING", "CANCELLING", "COMPLETED")}
    assert set(heartbeat.read_runs(client)) & set(runs.values()) == {runs["RUNNING"], runs["CANCELLING"]}

    for kind, run_id in runs.items():
        heartbeat.mark_dead(client, run_id, kind)

    states = [server.run(run_id)["state_type"] for run_id in runs.values()]
    assert states == ["CRASHED", "CANCELLED", "COMPLETED"]
    assert server.run(runs["RUNNING"])["state"]["message"].startswith("No heartbeat for 100 s")
    assert not set(heartbeat.read_runs(client)) & set(runs.values())


def test_a_new_heartbeat_process_takes_over_some_silence_but_never_enough_for_death(
    client, create_run, monkeypatch
):
    run_id = create_run()
    wait_for(lambda: heartbeat.read_runs(client)[run_id].sign[2] >= 2, 30)
    assert 0 <= heartbeat.read_runs(client, is_first=True)[run_id].silent < 40
    monkeypatch.setattr(heartbeat, "seconds_since_event", lambda answer: 3600.0)
    runs = heartbeat.read_runs(client, is_first=True)
    assert runs[run_id].silent == 40 and heartbeat.silent_for(heartbeat.SILENCE, runs) == []
