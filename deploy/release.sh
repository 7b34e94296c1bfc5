#!/usr/bin/env bash
# The steps of a release that ask a cluster: deploy/release.sh rollout|back ENVIRONMENT, smoke, load, canary.
# From the environment: IMAGE (with its digest), MODEL (name:version), URL, KUBECONFIG_CONTENT, API_KEY. .github/workflows/
# release.yaml runs them in order; by hand they are the same.
set -euo pipefail
cd "$(dirname "$0")/.."

# What is secret lies in files that only we read, never on a command line, and is gone when this ends.
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
if [ -n "${KUBECONFIG_CONTENT:-}" ]; then
  printf '%s' "$KUBECONFIG_CONTENT" >"$secrets/kubeconfig"
  export KUBECONFIG=$secrets/kubeconfig
fi
key=()
if [ -n "${API_KEY:-}" ]; then
  printf '%s' "$API_KEY" >"$secrets/key"
  key=(--key-file "$secrets/key")
fi

namespace_of() { if [ "$1" = production ]; then echo tabserve; else echo "tabserve-$1"; fi; }

# An overlay as it is in git, with the image of this release: an exact one, not a tag that somebody could move.
render() { kubectl kustomize "deploy/kubernetes/overlays/$1" | sed -E "s|(image: )registry.example.com/tabserve:.*-unset$|\1${IMAGE:?}|"; }

case ${1:-} in
rollout)
  namespace=$(namespace_of "${2:?staging or production}")
  render "$2" | kubectl apply --server-side --field-manager=tabserve-release -f -
  kubectl -n "$namespace" rollout status deployment/tabserve --timeout=180s
  kubectl -n "$namespace" delete deployment,service tabserve-canary --ignore-not-found
  ;;
back) # seconds: the old ReplicaSet is still there
  namespace=$(namespace_of "${2:?staging or production}")
  kubectl -n "$namespace" rollout undo deployment/tabserve
  kubectl -n "$namespace" rollout status deployment/tabserve --timeout=180s
  ;;
smoke)
  python3 deploy/smoke.py "${URL:?}" --version "${MODEL:?}" "${key[@]}"
  ;;
load)
  make .venv/loadtest.installed
  TABSERVE_LOADTEST_KEY_FILE=${key[1]:-} .venv/bin/locust -f loadtest/locustfile.py --host "${URL:?}" --headless \
    --profile steady --run-time 5m
  ;;
canary)
  # Only the canary is new: what is stable keeps its image until the canary has passed.
  stable=$(kubectl -n tabserve get deployment tabserve -o 'jsonpath={.spec.template.spec.containers[0].image}')
  kubectl kustomize deploy/kubernetes/overlays/canary |
    sed -E "s|(image: )registry.example.com/tabserve:0.0.1-unset$|\1${IMAGE:?}|; s|(image: )registry.example.com/tabserve:0.0.0-unset$|\1$stable|" |
    kubectl apply --server-side --field-manager=tabserve-release -f -
  kubectl -n tabserve rollout status deployment/tabserve-canary --timeout=180s
  make .venv/loadtest.installed
  .venv/bin/python -m deploy.canary httproute --namespace tabserve --prometheus "${PROMETHEUS:-$URL/prometheus}"
  ;;
*)
  echo "usage: deploy/release.sh rollout|back ENVIRONMENT | smoke | load | canary" >&2
  exit 2
  ;;
esac
