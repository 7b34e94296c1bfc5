"""A PostgreSQL and an S3 server for the tests: real processes that can be stopped, started again, and frozen."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import psycopg
import pytest
from uuid_utils import uuid7

from loadtest.processes import find_program, free_port

USER, PASSWORD = "tabserve", "pass/word@of:tests"


class PostgresqlServer:
    """A cluster in a folder of its own, whose durability is left out: it need not survive the machine."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        # It refuses to be root's. What pytest gives for temporary files is closed to anybody else.
        self._as: dict = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        (folder / "password").write_text(PASSWORD)
        if self._as:
            shutil.chown(folder, "postgres")
            shutil.chown(folder / "password", "postgres")
        options = ["--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"]
        self._run("initdb", "-D", f"{folder}/data", "-U", USER, f"--pwfile={folder}/password", *options)
        self.start()

    def _run(self, name: str, *arguments: str) -> None:
        program = find_program(name)
        assert program is not None
        subprocess.run([program, *arguments], cwd=self._folder, check=True, capture_output=True, **self._as)

    def start(self) -> None:
        program = find_program("postgres")
        assert program is not None
        options = ["listen_addresses=127.0.0.1", f"port={self.port}", f"unix_socket_directories={self._folder}"]
        options += ["fsync=off", "shared_buffers=32MB"]
        command = [program, "-D", f"{self._folder}/data", *(word for option in options for word in ("-c", option))]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, **self._as)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.Error), self.connect():
            return True
        return False

    def stop(self) -> None:
        """Ends it at once, connections and all."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Its processes stand still: connections are accepted by the kernel, and nothing is answered."""
        root = psutil.Process(self._process.pid)
        processes = [root, *root.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def connect(self, schema: str = "public") -> psycopg.Connection:
        """Over the socket, where no password is asked for."""
        options = f"-c search_path={schema} -c timezone=UTC"
        return psycopg.connect(
            host=str(self._folder), port=self.port, user=USER, dbname="postgres", options=options, autocommit=True
        )

    def url(self, spool: Path, schema: str | None = None) -> str:
        """The address of a new schema."""
        if schema is None:
            schema = f"s{uuid7().hex}"
            with self.connect() as connection:
                connection.execute(f"create schema {schema}")
        options = quote(f"-csearch_path={schema}", safe="")
        password = quote(PASSWORD, safe="")
        return (
            f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/postgres?options={options}&spool={quote(str(spool))}"
        )


def schema_of(url: str) -> str:
    return url.partition("search_path%3D")[2].partition("&")[0]


class S3Server:
    """Moto's server."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"http://127.0.0.1:{free_port()}"
        program = Path(sys.executable).with_name("moto_server")
        command = [program, "--host", "127.0.0.1", "--port", self.endpoint.rpartition(":")[2]]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.endpoint).status_code == 200
        return False

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """It works for a tenth of a second, then stands still for four of them, and so on."""
        is_over = threading.Event()

        def stop_and_go() -> None:
            while not is_over.wait(0.1):
                with self.frozen():
                    is_over.wait(0.4)

        thread = threading.Thread(target=stop_and_go)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def url(self, spool: Path) -> str:
        """The address of a folder in a new bucket."""
        bucket = f"b-{uuid7().hex}"
        httpx.put(f"{self.endpoint}/{bucket}").raise_for_status()
        return f"s3://{bucket}/a%20prefix?endpoint={self.endpoint}&spool={quote(str(spool))}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with tempfile.TemporaryDirectory(prefix="tabserve-postgresql-") as folder:
        server = PostgresqlServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "a-key")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "its-secret")
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        try:
            yield server
        finally:
            server.stop()
