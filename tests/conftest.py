"""What all tests share: one thread, so that sums round alike, and wild inputs that are the same each time."""

import os
import shutil
import signal

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tests.helpers.browser import chromium
from tests.helpers.fork_server import RegistryProcess
from tests.helpers.mlflow_server import new_mlflow_database
from tests.helpers.tiny_models import write_parts
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import write_package

os.environ["SERVERS_FOLDER"] = os.devnull  # a test uses no servers but its own
RECORDS_AT = os.environ.get("MLFLOW_TRACKING_URI")
torch.set_num_threads(1)
# under nohup or in the background of a script these are ignored, and every process of a test would ignore them too
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda *_: None)
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def environment_is_left_as_it_was():
    """MLflow writes where it records into the environment, where the stages of every later test would find it."""
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == RECORDS_AT, "this test left MLFLOW_TRACKING_URI behind"


@pytest.fixture(scope="session")
def anyio_backend():
    """What runs a test that is marked `anyio`."""
    return "asyncio"


@pytest.fixture(scope="module")
def browser():
    """Chromium; tests that ask for it skip where there is none. A module's own: while it is open no `anyio` test can run."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders of four tiny models that fit together; to be read only."""
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def package_folder(parts, tmp_path_factory):
    """A tiny package; to be read only."""
    folder = tmp_path_factory.mktemp("models") / "package"
    write_package(folder, parts, SamplingConfig(candidates=4, batch_size=3), {"seed": 0})
    return folder


@pytest.fixture(scope="session")
def two_versions(tmp_path_factory):
    """A project with two champions one after the other in a registry of its own; to be copied, never changed."""
    from tests.helpers.registered_models import two_champions  # late: it loads MLflow

    of_run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the first of the processes makes it for all
        of_run = of_run.parent
    folder, is_made = of_run / "two_versions", of_run / "two_versions.made"
    with FileLock(of_run / "two_versions.lock"), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if not is_made.exists():
            new_mlflow_database(folder / ".mlflow/mlflow.db")
            two_champions(folder)
            is_made.touch()
    return folder


@pytest.fixture
def project(two_versions, tmp_path, monkeypatch):
    """A working tree and a registry of a test's own; the files of its two versions are shared, and not to be changed."""
    shutil.copytree(two_versions, tmp_path / "project", ignore=shutil.ignore_patterns(".mlflow"))
    shutil.copy(two_versions / ".mlflow/mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path / "project"


@pytest.fixture(scope="session")
def registry_process(two_versions, tmp_path_factory):
    """A process that runs the registry's commands in children, which can be killed."""
    running = RegistryProcess(two_versions, tmp_path_factory.mktemp("registry_process") / "project")
    yield running
    running.close()
