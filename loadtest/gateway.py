"""nginx in front of replicas: its configuration, and which replica is out of service."""

import contextlib
import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest.errors import BadInputError
from loadtest.processes import NotStartedError, Server, find_program, running

# Everything is relative to the folder in which nginx is started, also what it would have elsewhere by default.
CONFIGURATION = """\
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 8192; # two connections a request
pid nginx.pid;
error_log stderr;

events {{
  worker_connections 4096;
}}

http {{
  access_log off;
  client_body_temp_path client_body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;

{pools}
  server {{
    listen 127.0.0.1:{port};

    # A file takes a replica out of service between two requests. A reload would close connections of callers who are
    # about to send (docs/decisions.md has the numbers).
    set $pool all;
{choices}

    # nginx has the whole body before a replica sees any of it, so that it can send it to another one. Up to the
    # service's limit it is kept in memory; more goes through, to be refused by the service in its own words.
    client_body_buffer_size {max_body_bytes};
    client_max_body_size {max_passed_bytes};

    location / {{
      proxy_pass http://$pool;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_connect_timeout 1s;
      proxy_buffers 32 8k; # an answer of 512 rows in memory

      # A prediction changes nothing, so a POST may be asked again (non_idempotent) where its replica is gone. Not after
      # a timeout or a 503: that is load, and asking again would make it more. Twice in all: a request that ends
      # whatever answers it must not end all of them.
      proxy_next_upstream error non_idempotent;
      proxy_next_upstream_tries 2;

      add_header X-Replica $upstream_addr always; # who was asked, in order
    }}
  }}
}}
"""

# uvicorn closes idle connections after 5 s, which must not happen just as a request is sent; the shorter, the sooner a
# replica that is out of service has no connection any more.
POOL = """\
  upstream {name} {{
{servers}
    keepalive 64;
    keepalive_timeout 1s;
  }}
"""

PASSED_BODIES = 10  # times the limit of the service: who sends too much is told by the service, and no disk is filled


class Gateway:
    """A running nginx, with all replicas in service or all but one."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder

    @property
    def has_ended(self) -> bool:
        return self._server.has_ended

    @property
    def last_words(self) -> str:
        return _last_line(self._server.log)

    def take_out(self, number: int) -> None:
        (self._folder / _mark(number)).touch()

    def put_back(self, number: int) -> None:
        (self._folder / _mark(number)).unlink()

    def is_connected_to(self, port: int) -> bool:
        """Whether requests may be under way there: where a replica is out of service, idle connections soon end."""
        return self._server.is_connected_to(port)


@contextlib.contextmanager
def gateway(folder: Path, port: int, replicas: Sequence[int], max_body_bytes: int) -> Iterator[Gateway]:
    """Starts nginx on a port of loopback, with all that it writes in a new folder.

    Args:
        replicas: their ports.
        max_body_bytes: what the service takes.

    Raises:
        BadInputError: where it does not start.
    """
    folder.mkdir()
    (folder / "nginx.conf").write_text(configuration(port, replicas, max_body_bytes))
    command = [program(), "-e", "stderr", "-p", "./", "-c", "nginx.conf"]
    log = folder / "nginx.log"
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running(command, port, log, cwd=folder, environment=os.environ))
        except NotStartedError as error:
            raise BadInputError(f"nginx does not start: {_last_line(log)}") from error
        yield Gateway(server, folder)


def program() -> str:
    """Where nginx is.

    Raises:
        BadInputError: where it is not installed.
    """
    found = find_program("nginx")
    if found is None:
        raise BadInputError("nginx is not installed; on Debian and Ubuntu: apt-get install nginx")
    return found


def configuration(port: int, replicas: Sequence[int], max_body_bytes: int) -> str:
    """nginx.conf: a pool of all replicas, and for each of them one without it."""
    pools = [_pool("all", replicas, None), *(_pool(f"without_{out}", replicas, out) for out in range(len(replicas)))]
    choices = [f"    if (-f {_mark(out)}) {{ set $pool without_{out}; }}" for out in range(len(replicas))]
    return CONFIGURATION.format(
        # As root it would give itself to somebody who may not enter the folder; as anybody else it would complain.
        user=f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else "",
        pools="\n".join(pools),
        port=port,
        choices="\n".join(choices),
        max_body_bytes=max_body_bytes,
        max_passed_bytes=PASSED_BODIES * max_body_bytes,
    )


def _pool(name: str, replicas: Sequence[int], out: int | None) -> str:
    # Who refused a connection is left alone for a second: it is not there, or it is being started again.
    servers = [
        f"    server 127.0.0.1:{port} {'down' if number == out else 'max_fails=1 fail_timeout=1s'};"
        for number, port in enumerate(replicas)
    ]
    return POOL.format(name=name, servers="\n".join(servers))


def _mark(number: int) -> str:
    return f"out-of-service-{number}"


def _last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines()
    return lines[-1] if lines else "it says nothing"
