#!/bin/sh
# Compiles to JavaScript in dist/, for hosts whose Node may not strip types (Node 24 runs the sources as they are, except below node_modules).
# It finds its packages in the node_modules beside or above it: node dist/node/cli.js --help
#   sh deploy/build.sh [DIRECTORY]
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/.bin:$PATH"
dist=${1-dist}
rm -rf "$dist"
tsc -p tsconfig.build.json --outDir "$dist"
# Everything that is read at run time and is not TypeScript.
cp supernode/console.html "$dist/supernode/"
cp blockdev/supervisor-shim.pl "$dist/blockdev/"
cp -R snapshotter/proto "$dist/snapshotter/"
cp package.json "$dist/"
