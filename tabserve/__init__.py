"""From a table of rows to a served prediction, on BentoML and scikit-learn."""

import os

# BentoML reports every command and every start to its makers unless it is told not to. It reads this variable when the
# first event would be sent, so it has to be set before any of our entry points does its work; a user's own value wins.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

# So does ONNX Runtime since 1.29, on Linux too: it writes an identifier of the device to disk and sends events to its
# makers. It reads this variable when it is first asked for something, and never again.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
