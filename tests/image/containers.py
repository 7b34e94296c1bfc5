"""What builds and runs images for the tests: storage of its own, which vanishes with it, and containers as hardened as
deploy/README.md has them."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from conftest import ROOT, environment, free_port

from tabserve.build import BASE_IMAGE

CA = "/etc/ssl/certs/ca-certificates.crt"
HARDENED = [
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--cpus", "1", "--pids-limit", "100"),
]


def hard_limit(kind: int, wanted: int) -> int:
    """Podman asks for more than a machine without CAP_SYS_RESOURCE may have."""
    limit = resource.getrlimit(kind)[1]
    return wanted if limit == resource.RLIM_INFINITY else min(limit, wanted)


class Containers:
    """Podman and buildah with storage below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
        )
        # The certificates of this machine and what uv has to know of them, mounted while something is built: they are
        # in no layer.
        (folder / "uv.toml").write_text("system-certs = true\n")
        mounts = [f"{CA}:{CA}:ro", f"{folder}/uv.toml:/etc/uv/uv.toml:ro"]
        (folder / "build.conf").write_text(f"[containers]\nvolumes = {json.dumps(mounts)}\n")
        files, processes = hard_limit(resource.RLIMIT_NOFILE, 20000), hard_limit(resource.RLIMIT_NPROC, 4096)
        limits = [f"nofile={files}:{files}", f"nproc={processes}:{processes}"]
        runc = shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin")
        (folder / "run.conf").write_text(
            f'[engine]\nruntime = "{runc}"\n[containers]\ndefault_ulimits = {json.dumps(limits)}\n'
        )

    def variables(self, *, building: bool = False) -> dict[str, str]:
        return {
            "CONTAINERS_STORAGE_CONF": f"{self.folder}/storage.conf",
            "CONTAINERS_CONF": f"{self.folder}/{'build' if building else 'run'}.conf",
            "BUILDAH_ISOLATION": "chroot",  # crun knows no machine with both versions of cgroups
        }

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["podman", "--log-level", "fatal", *arguments]
        # There, because a container that is killed for its memory leaves a file where it was started.
        variables = os.environ | self.variables()
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done

    def build(self, home: Path, *options: str) -> str:
        """Runs deploy/image/build.py as `make image` does, and returns the name that it prints."""
        command = [sys.executable, "-m", "deploy.image.build", "--backend", "buildah", "--base", "localhost/base:run"]
        variables = environment(home, **self.variables(building=True))
        done = subprocess.run([*command, *options], cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done.stdout.strip().splitlines()[-1]

    def make_bases(self) -> None:
        """Stands in for Docker Hub's Python, from Debian's packages: with uv to build in, without to run on."""
        root = self.folder / "base"
        sources = [f"deb {mirror('/debian')} bookworm main", f"deb {mirror('/debian-security')} bookworm-security main"]
        options = ["--quiet", "--variant=minbase", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        # usrmerge, in the place of usr-is-merged, would bring all of Perl.
        options += ["--include=ca-certificates,python3,usr-is-merged"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        archive = self.folder / "base.tar"
        subprocess.run(["mmdebstrap", *options, "bookworm", str(archive), *sources], check=True, capture_output=True)
        root.mkdir()
        subprocess.run(["tar", "-C", str(root), "-xf", str(archive)], check=True)
        official = [
            f"deb http://deb.debian.org{path}"
            for path in ("/debian bookworm main", "/debian-security bookworm-security main")
        ]
        (root / "etc/apt/sources.list").write_text("\n".join(official) + "\n")
        self._import(root, "localhost/base:run")
        uv = Path(sys.executable).with_name("uv")  # BentoML's template installs one by pip, which Debian forbids
        shutil.copy(uv, root / "usr/local/bin/uv")
        self._import(root, BASE_IMAGE)
        shutil.rmtree(root)
        archive.unlink()

    def _import(self, root: Path, name: str) -> None:
        with subprocess.Popen(["tar", "-C", str(root), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE) as tar:
            command = ["podman", "import", "--quiet", "-", name]
            subprocess.run(
                command, stdin=tar.stdout, env=os.environ | self.variables(), check=True, capture_output=True
            )

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The files of an image."""
        path = self.podman("image", "mount", image).stdout.strip()
        try:
            yield Path(path)
        finally:
            self.podman("image", "umount", image)

    def layers(self, image: str) -> tuple[dict, Path]:
        """Its manifest, and a folder with its layers and configuration as they would be pushed."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        target = f"dir:{folder}"
        command = ["skopeo", "copy", "--quiet", "--dest-compress", f"containers-storage:localhost/{image}", target]
        subprocess.run(command, env=os.environ | self.variables(), check=True, capture_output=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        return manifest, folder

    def remove(self) -> None:
        self.podman("rm", "--all", "--force", check=False)
        self.podman("image", "umount", "--all", check=False)
        subprocess.run(["umount", str(self.folder / "storage" / "overlay")], capture_output=True)
        shutil.rmtree(self.folder)


def mirror(path: str) -> str:
    """The address from which this machine takes Debian's packages."""
    lines = [
        word.rstrip("/")
        for file in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
        if file.is_file()
        for line in file.read_text().splitlines()
        if line.startswith(("URIs:", "deb "))
        for word in line.split()
        if "://" in word
    ]
    return next((address for address in lines if address.endswith(path)), f"http://deb.debian.org{path}")


class Container:
    """A service in a container on the loopback of this machine."""

    def __init__(
        self, containers: Containers, image: str, *options: str, memory: str = "512m", tmp: str = "64m", **settings: str
    ) -> None:
        self._containers = containers
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.settings = settings
        variables = {"PORT": str(port), "BENTOML_HOST": "127.0.0.1", **settings}
        words = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        limits = ["--memory", memory, "--tmpfs", f"/tmp:rw,size={tmp}"]
        command = ["run", "--detach", "--network", "host", *HARDENED, *limits, *words, *options, image]
        self.started = time.monotonic()
        self.name = containers.podman(*command).stdout.strip()

    def wait_until_ready(self, limit_seconds: float = 60) -> float:
        """The seconds from its start until it was ready."""
        while time.monotonic() < self.started + limit_seconds:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return time.monotonic() - self.started
            assert self.state()["Running"], self.log()
            time.sleep(0.02)
        raise AssertionError(self.log())

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self._containers.podman("exec", self.name, *command, check=False)

    def state(self) -> dict:
        return json.loads(self._containers.podman("inspect", "--format", "{{json .State}}", self.name).stdout)

    def log(self) -> str:
        done = self._containers.podman("logs", self.name, check=False)
        return done.stdout + done.stderr

    def restart(self) -> None:
        self.started = time.monotonic()
        self._containers.podman("start", self.name)

    def remove(self) -> None:
        self._containers.podman("rm", "--force", "--time", "10", self.name)
