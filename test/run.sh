#!/bin/sh
# Types, lint, then Jest on the project's own Node; extra words go to Jest alone and skip the first two.
# The noise of the one experimental flag that Jest's ESM needs is silenced.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/.bin:$PATH"
# The commands that tests run are the built ones: built of these sources.
node deploy/build.ts
if [ $# = 0 ]; then
  echo 'types'; tsc --noEmit
  echo 'lint'; oxlint --deny-warnings --quiet
fi
exec node --experimental-vm-modules --disable-warning=ExperimentalWarning node_modules/jest/bin/jest.js "$@"
