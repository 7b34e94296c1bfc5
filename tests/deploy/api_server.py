"""As much of a Kubernetes API server as kubectl asks for when it changes something; it takes all, and remembers it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import yaml
from alert_programs import serving

from loadtest.processes import find_program

KINDS = {
    "v1": ("Namespace", "Service", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim"),
    "apps/v1": ("Deployment",),
    "batch/v1": ("CronJob",),
    "policy/v1": ("PodDisruptionBudget",),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "gateway.networking.k8s.io/v1": ("HTTPRoute",),
    "monitoring.coreos.com/v1": ("ServiceMonitor", "PrometheusRule"),
    "external-secrets.io/v1": ("ExternalSecret",),
}


@dataclass
class ApiServer:
    """What came, in order: path, and the patch or the object."""

    url: str
    patched: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def kubectl(self) -> list[str]:
        """The real kubectl, to ask this server and no other."""
        options = ["--server", self.url, "--cache-dir", "/nonexistent", "--kubeconfig", "/dev/null"]
        return [str(find_program("kubectl")), *options]


def known() -> dict[str, Any]:
    """Path to what a server says of itself there."""
    groups = [version for version in KINDS if "/" in version]
    versions = [{"groupVersion": version, "version": version.partition("/")[2]} for version in groups]
    pages: dict[str, Any] = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {"name": one["groupVersion"].partition("/")[0], "versions": [one], "preferredVersion": one}
                for one in versions
            ],
        },
    }
    for version, kinds in KINDS.items():
        resources = [
            {
                "name": f"{kind.lower().removesuffix('y')}{'ies' if kind.endswith('y') else 's'}",
                "singularName": kind.lower(),
                "namespaced": kind != "Namespace",
                "kind": kind,
                "verbs": ["get", "patch"],
            }
            for kind in kinds
        ]
        page = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        pages[f"/apis/{version}" if "/" in version else f"/api/{version}"] = page
    return pages


@contextlib.contextmanager
def api_server() -> Iterator[ApiServer]:
    pages, server = known(), ApiServer("")
    route = {"kind": "HTTPRoute", "apiVersion": "gateway.networking.k8s.io/v1", "metadata": {"name": "tabserve"}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(pages.get(self.path.partition("?")[0], route))

        def do_PATCH(self) -> None:
            patch = yaml.safe_load(self.rfile.read(int(self.headers["content-length"])))
            server.patched.append((self.path.partition("?")[0], patch))
            # Another answer than what is there, so that kubectl takes it for changed.
            self._say(patch if isinstance(patch, dict) else {**route, "spec": {"patched": patch}})

        def _say(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as server.url:
        yield server
