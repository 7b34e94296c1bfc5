"""Exit code 0 where the service in this container is ready. The image has no curl."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "3000")), timeout=4)
try:
    connection.request("GET", "/ready")
    status = connection.getresponse().status
except OSError as error:
    sys.exit(f"not reachable: {error}")
sys.exit(0 if status == 200 else f"/ready answers {status}")
