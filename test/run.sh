#!/bin/sh
# Runs Jest on the project's own Node; extra words go to Jest. Noise of the one experimental flag that Jest's ESM needs is silenced.
set -eu
cd "$(dirname "$0")/.."
exec ./node_modules/.bin/node --experimental-vm-modules --disable-warning=ExperimentalWarning node_modules/jest/bin/jest.js "$@"
