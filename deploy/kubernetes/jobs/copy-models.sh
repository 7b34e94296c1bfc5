#!/bin/sh
# copy-models.sh FROM HOME: the versions in the model store FROM into that of BentoML's home, each whole or not at all.
set -eu
cd "$1"
for version in */*/; do
  if [ -e "$2/models/$version" ]; then continue; fi # a version never changes
  rm -rf "$2/.copied"
  cp -R "$version" "$2/.copied"
  mkdir -p "$2/models/${version%%/*}"
  mv "$2/.copied" "$2/models/${version%/}"
done
