#!/usr/bin/env bash
# Makes what is secret in the compose stack and is not there yet, in deploy/compose/secrets/ (git ignores it): certificate,
# API keys, passwords; no password is one that somebody else has too. Of whom the service asks is said at the end.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
cd "$folder"
# Nobody else of this machine gets in here. A container sees the files that it is given and no others, as a user of its own:
# so the files themselves are for all to read.
chmod 700 .

missing() { [ ! -s "$1" ]; }
key() (
  file=$PWD/api-keys.yaml
  cd "$root"
  "$python" -m tabserve keys create "$1" --scopes "$2" --file "$file"
)

if missing tls.crt || missing tls.key; then # one for this machine; yours has your name in it
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
    -keyout tls.key -out tls.crt 2>/dev/null
fi
if missing grafana-password; then openssl rand -hex 16 >grafana-password; fi
if missing postgresql-password; then openssl rand -hex 16 >postgresql-password; fi
# How libpq is told of a password without a variable or an address that has it.
printf '[tabserve]\nuser=tabserve\npassword=%s\n' "$(cat postgresql-password)" >postgresql-service
if missing caller-key; then key caller predict,feedback >caller-key; fi
if missing metrics-key; then key prometheus metrics >metrics-key; fi
touch chat-url pager-key # Alertmanager's, of your chat and your pager
chmod 444 -- *
echo "secrets are in $PWD: the key in caller-key opens /predict and /feedback; write into chat-url and pager-key whom Alertmanager tells"
