"""From a table of rows to a served prediction, on BentoML and scikit-learn."""

import os

# BentoML reports every command and every start to its makers unless it is told not to. It reads this variable when the
# first event would be sent, so it has to be set before any of our entry points does its work; a user's own value wins.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
