"""Serves the Bento once while the image is built: one that does not start is no image, and what it loads is compiled.

Python keeps the bytecode of what it imports beside it. A container with a read-only root could not, and would compile
everything at each start; bytecode of everything that is installed would be five times as large.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# What is loaded only with other settings than those of this start. What another model would load is not here: the
# bytecode of scikit-learn, SciPy and pandas takes 25 MB, and the model that is baked in has just loaded what it needs.
LATER = """
import tabserve.access.bearer_tokens, tabserve.access.shared_rate_limit, tabserve.cli, tabserve.tracing.receiver
import tabserve.prediction_log.postgresql, tabserve.prediction_log.s3, pyarrow.fs, psycopg
"""
LIMIT_SECONDS = 120  # nothing is compiled yet, and a builder's disk may be slow


def main() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    bento = os.environ["BENTO_PATH"]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"BENTOML_HOME": home, "PYTHONPATH": f"{bento}/src"}
        command = [sys.executable, "-m", "bentoml", "serve", bento, "--host", "127.0.0.1", "--port", str(port)]
        service = subprocess.Popen(command, env=environment)
        try:
            predict_once(f"http://127.0.0.1:{port}", service)
        finally:
            service.terminate()
            service.wait(30)
        subprocess.run([sys.executable, "-c", LATER], env=environment, cwd=home, check=True)
        recorded = [path for path in Path(home).rglob("*") if path.suffix in (".arrows", ".parquet")]
    if not recorded:
        sys.exit("first_start.py: the service answered, but did not keep its prediction")


def predict_once(url: str, service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        try:
            description = json.load(urllib.request.urlopen(f"{url}/openapi.json", timeout=10))
            break
        except OSError:
            if service.poll() is not None or time.monotonic() > deadline:
                sys.exit("first_start.py: the service did not start, see above")
            time.sleep(0.1)
    content = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    body = next(iter(content["examples"].values()))["value"]
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/predict", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        sys.stdout.write(f"first_start.py: {answer.read().decode()}\n")
    with urllib.request.urlopen(f"{url}/metrics", timeout=30):
        pass


if __name__ == "__main__":
    main()
