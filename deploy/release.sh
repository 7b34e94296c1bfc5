#!/usr/bin/env bash
# The steps of a release, in this order; .github/workflows/release.yaml runs them, and by hand they are the same:
#
#   production-model     the model that was released last, into build/production.bentomodel; nothing the first time
#   train                trains with the gates, holds the model against that one, and packs it into build/
#   image                builds both images of the packed model, pushes them to REGISTRY, writes what is in them to build/
#   render OVERLAY       the manifests with the images of this release, to look at
#   rollout ENVIRONMENT  staging, or production when its canary has passed
#   smoke                asks what must be answered
#   load                 seven minutes at the expected peak and twice that, within the objectives of loadtest/slo.yaml
#   canary               the new image beside the old one in production: 5, 25, 50, 100 % of the requests, or back to none
#   back ENVIRONMENT     to what served before, in seconds
#   keep                 the packed model beside those that were released before
#
# From the environment: IMAGE and TOOLS_IMAGE (with their digests), MODEL (name:version), COMMIT, URL; PROMETHEUS for the canary;
# API_KEY and KUBECONFIG_CONTENT, which are secret; for training LABELLED_ROWS, a file of rows that no model was
# trained on, and BREAKS_CALLERS=yes where they were told of another contract. What a step found goes to GITHUB_OUTPUT and
# GITHUB_STEP_SUMMARY, or is said.
set -euo pipefail
cd "$(dirname "$0")/.."

# What is secret lies in files that only we can read, on no command line, and is gone when this ends.
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
if [ -n "${KUBECONFIG_CONTENT:-}" ]; then
  printf '%s' "$KUBECONFIG_CONTENT" >"$secrets/kubeconfig"
  export KUBECONFIG=$secrets/kubeconfig
fi
with_key() { # a command, with the key where there is one
  local option=$1
  shift
  if [ -z "${API_KEY:-}" ]; then "$@"; return; fi
  printf '%s\n' "$API_KEY" >"$secrets/key"
  "$@" "$option" "$secrets/key"
}

found() { echo "$1=$2" | tee -a "${GITHUB_OUTPUT:-/dev/null}"; }
namespace_of() { if [ "$1" = production ]; then echo tabserve; else echo "tabserve-$1"; fi; }

# An overlay as it is in git, with exact images and not tags that somebody could move. STABLE_IMAGE is what production has
# while there is a canary.
render() {
  kubectl kustomize "deploy/kubernetes/overlays/$1" | sed -E \
    -e "s|registry.example.com/tabserve-tools:0.0.0-unset|${TOOLS_IMAGE:?}|" \
    -e "s|registry.example.com/tabserve:0.0.0-unset|${STABLE_IMAGE:-${IMAGE:?}}|" \
    -e "s|registry.example.com/tabserve:0.0.1-unset|${IMAGE:?}|"
}

# As the only one that says what is in these objects, the weights included that a canary has set.
apply() { kubectl apply --server-side --force-conflicts --field-manager=tabserve-release --filename=- "$@"; }
ROUTE=app.kubernetes.io/component=route
NO_ROUTE=app.kubernetes.io/component!=route
NOT_IN_USE=tabserve.dev/track!=stable,app.kubernetes.io/component!=job
wait_for() { kubectl --namespace "$1" rollout status "deployment/$2" --timeout=180s; }

push() { # an image of this machine; says its name in the registry, with the digest
  local there="${REGISTRY:?}/$1"
  there=${there,,} # GitHub's owners may have capitals, names of images may not
  docker tag "$1" "$there"
  docker push --quiet "$there" >&2
  docker inspect --format '{{index .RepoDigests 0}}' "$there"
}

# A model store with nothing in it but what a release is about, whatever somebody's own one has.
new_store() {
  export BENTOML_HOME=$PWD/build/home
  rm -rf "$BENTOML_HOME"
  mkdir -p "$BENTOML_HOME"
}
newest_model() { .venv/bin/python -c 'from tabserve import model_store; print(model_store.find(None).tag)'; }

# Whether callers of the model in production ($1) can go on with the new one ($2), and whether it is not worse; for who approves.
compare() {
  echo "champion: $1" >"$BENTOML_HOME/rollout.yaml" # not by `promote`, which wants a model of this very scikit-learn
  .venv/bin/python -m tabserve models | summary "$2 after $1"
  .venv/bin/python -m tabserve promote "$2" --why "a release" ${BREAKS_CALLERS:+--allow-contract-change}
  if [ -z "${LABELLED_ROWS:-}" ]; then
    echo "on no rows that both have not seen: name a file with LABELLED_ROWS" | summary "Not compared"
    return
  fi
  make --silent .venv/monitoring.installed
  local code=0
  .venv/bin/python -m tabserve evaluate "$2" --against "$1" --data "$LABELLED_ROWS" 2>&1 | summary "On $LABELLED_ROWS" || code=$?
  # Worse ends it. Where neither is shown, or they cannot be compared (another scikit-learn), whoever approves has read why.
  if [ "$code" = 1 ]; then return 1; fi
}
summary() { # a title, and what comes in
  { printf '### %s\n\n```\n' "$1" && cat && printf '```\n'; } | tee -a "${GITHUB_STEP_SUMMARY:-/dev/null}" >&2
}

step=${1:-}
case $step in
production-model)
  mkdir -p build
  rm -f build/production.bentomodel
  # By when they were published: GitHub sorts them by their commits.
  released=$(gh release list --exclude-drafts --exclude-pre-releases --limit 1000 --json name,tagName,publishedAt \
    --jq 'map(select(.name | startswith("model "))) | sort_by(.publishedAt) | last | .tagName // empty')
  if [ -z "$released" ]; then
    echo "no model was released yet" >&2
  else
    gh release download "$released" --pattern model.bentomodel --output build/production.bentomodel
  fi
  ;;
train)
  make --silent .venv/training.installed
  new_store
  production=""
  if [ -f build/production.bentomodel ]; then
    .venv/bin/bentoml models import "$PWD/build/production.bentomodel" # the number of the new one follows from it
    production=$(newest_model)
  fi
  model=$(make --silent train | tail -n 1)
  if [ -n "$production" ]; then compare "$production" "$model"; fi
  rm -f build/model.bentomodel
  .venv/bin/bentoml models export "$model" "$PWD/build/model.bentomodel" # of a relative path it takes the root for the folder
  found model "$model"
  ;;
image)
  make --silent .venv/training.installed
  new_store
  .venv/bin/bentoml models import "$PWD/build/model.bentomodel"
  image=$(TABSERVE_MODEL=${MODEL:?} make --silent image | tail -n 1)
  tools=$(make --silent image-tools | tail -n 1)
  .venv/bin/python -m deploy.image.sbom "$image" >build/sbom.json
  found image "$(push "$image")"
  found tools_image "$(push "$tools")"
  ;;
render)
  render "${2:?which overlay}"
  ;;
rollout)
  namespace=$(namespace_of "${2:?staging or production}")
  # The pods first, and then the route: while they change, the canary still has the requests. In one piece, so that what
  # served before is one revision back.
  render "$2" | apply --selector="$NO_ROUTE"
  # `kubectl rollout history` says it of each revision.
  kubectl --namespace "$namespace" annotate --overwrite deployment/tabserve "kubernetes.io/change-cause=${MODEL:?} in $IMAGE"
  wait_for "$namespace" tabserve
  render "$2" | apply
  kubectl --namespace "$namespace" delete --ignore-not-found \
    deployment/tabserve-canary service/tabserve-canary hpa/tabserve-canary pdb/tabserve-canary
  ;;
keep)
  gh release create "${MODEL/:/-}" build/model.bentomodel --title "model ${MODEL:?}" --notes "Image: ${IMAGE:?}" \
    ${GITHUB_SHA:+--target "$GITHUB_SHA"}
  ;;
back)
  namespace=$(namespace_of "${2:?staging or production}")
  kubectl --namespace "$namespace" rollout undo deployment/tabserve
  wait_for "$namespace" tabserve
  ;;
smoke)
  with_key --key-file python3 deploy/smoke.py "${URL:?}" --version "${MODEL:?}" ${COMMIT:+--commit "$COMMIT"}
  ;;
load)
  make --silent .venv/loadtest.installed
  # Through the gateway, which lets through what callers need: neither BentoML's own API nor /metrics.
  with_key --api-key-file .venv/bin/locust --locustfile loadtest/locustfile.py --headless --host "${URL:?}" \
    --expect-model "${MODEL:?}" --profile peak --processes 2 --duration-factor "${DURATION_FACTOR:-1}" \
    --arrival-rate "${ARRIVAL_RATE:-500}" \
    --results "${RESULTS:-loadtest/results}" --runs-page /dev/null OneRow ManyRows
  ;;
canary)
  STABLE_IMAGE=$(kubectl --namespace tabserve get deployment/tabserve --ignore-not-found --output 'jsonpath={.spec.template.spec.containers[0].image}')
  if [ -z "$STABLE_IMAGE" ]; then
    echo "nothing serves in production yet, so there is nothing to compare a canary with" >&2
    exit 0
  fi
  # What serves, and the jobs, stay as they are until it has passed; and it has no requests before it is ready.
  render canary | apply --selector="$NO_ROUTE,$NOT_IN_USE"
  wait_for tabserve tabserve-canary
  render canary | apply --selector="$ROUTE"
  make --silent .venv/training.installed
  .venv/bin/python -m deploy.canary httproute --namespace tabserve --prometheus "${PROMETHEUS:?}"
  ;;
*)
  sed -n '2,18s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
