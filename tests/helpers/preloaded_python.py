"""A `python` for the stages of a test: PyTorch and MLflow are imported already, which takes most of a small stage's time.

It is put first in PATH. Each call of `python -m MODULE ...` runs in a new process with its own arguments, folder,
environment, output and exit code, forked from one that has imported these packages, and nothing of this project.
"""

import contextlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

CLIENT = f"""#!{sys.executable} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect(__file__ + ".socket")
call = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(call).encode()], [0, 1, 2])
sys.exit(int(server.recv(10)))
"""


@contextlib.contextmanager
def preloaded_python(environment: dict[str, str]) -> Iterator[str]:
    """A folder that is to be the first of PATH."""
    with tempfile.TemporaryDirectory() as folder:  # a short path: that of a socket has at most 107 bytes
        python = Path(folder) / "python"
        python.write_text(CLIENT)
        python.chmod(0o755)
        # stages take a parent with "dvc" among its first arguments for the run that they belong to
        command = [sys.executable, __file__, "dvc", f"{python}.socket"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"ready\n"
            yield folder
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def wait_for_call(path: str) -> list[str]:
    """The arguments of a call, in a process that was made for it; one call after the other."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            message, files, *_ = socket.recv_fds(client, 1 << 20, 3)
            child = os.fork()
            if child == 0:
                client.close()
                break
            for file in files:
                os.close(file)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            client.send(str(code if code >= 0 else 128 - code).encode())
            client.close()
    call = json.loads(message)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return call["arguments"]


if __name__ == "__main__":
    import mlflow  # noqa: F401
    import open_clip  # noqa: F401
    import torch._dynamo  # noqa: F401  optimizers import it

    assert threading.active_count() == 1, "a fork copies one thread only"
    option, module, *arguments = wait_for_call(sys.argv[2])
    assert option == "-m"
    sys.path[0], sys.argv = os.getcwd(), [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
