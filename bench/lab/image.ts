// The demo's image, made of real parts: Debian with python3, a layer that adds packages, and one that replaces and deletes files.
import { chmodSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { SkimmerError } from '../../oci/errors.ts'
import { run } from './process.ts'

/** Change it when the recipe below changes: the cache is keyed by it. */
const RECIPE = 5
const SUITE = 'bookworm'
const ADDED_PACKAGES = ['python3-requests', 'python3-yaml', 'python3-jinja2', 'python3-pip', 'python3-numpy', 'git', 'perl', 'vim-nox', 'curl', 'locales']

/** An import-heavy start, as services have (about 250 modules): it prints one line when all is imported. */
export const START_SCRIPT =
  'import asyncio, ssl, sqlite3, http.server, email.mime.multipart, xml.etree.ElementTree, multiprocessing, concurrent.futures, decimal, ctypes, ' +
  'urllib.request, logging.config, argparse, json, csv, yaml; print("ready", len(__import__("sys").modules) > 200)'

export type Say = (line: string) => void

/**
 * Makes the image's OCI layout under `cache`, once, and answers its path (tag `latest`). About two minutes the first time.
 * Layers: debootstrap's tree; what apt adds to it (an overlay's upper directory); replaced and deleted files, an opaque directory.
 */
export async function makeDemoImage(cache: string, say: Say, signal?: AbortSignal): Promise<string> {
  const layout = join(cache, `image-${RECIPE}`)
  const done = join(layout, '.complete')
  if (existsSync(done)) return layout
  const work = join(cache, `work-${process.pid}`)
  mkdirSync(work, { recursive: true })
  rmSync(layout, { recursive: true, force: true })
  const merged = join(work, 'merged')
  try {
    const base = join(work, 'base')
    const tree = await debootstrapTree(cache, work, say, signal)
    mkdirSync(base)
    await run(['tar', '-C', base, '--xattrs', '--xattrs-include=*', '--numeric-owner', '-xpf', tree], { signal })

    say('image: adding packages in a second layer')
    const upper = join(work, 'upper')
    for (const directory of [upper, join(work, 'ovl'), merged]) mkdirSync(directory)
    await run(['mount', '-t', 'overlay', 'overlay', '-o', `lowerdir=${base},upperdir=${upper},workdir=${join(work, 'ovl')}`, merged])
    await aptInstall(merged, signal)
    await run(['umount', merged])

    say('image: replacing and deleting files in a third layer')
    const third = join(work, 'third')
    mkdirSync(third)
    writeThirdLayer(third, base)
    whiteoutsOf(upper)

    say('image: packing gzip layers')
    await run(['umoci', 'init', '--layout', layout])
    await run(['umoci', 'new', '--image', `${layout}:latest`])
    for (const [name, directory] of [['base', base], ['upper', upper], ['third', third]] as const) {
      const tar = join(work, `${name}.tar`)
      await run(['tar', '-C', directory, '--format=pax', '--xattrs', '--xattrs-include=security.*', '--xattrs-include=user.*', '--numeric-owner', '--sort=name', '-cf', tar, '.'], { signal })
      await run(['umoci', 'raw', 'add-layer', '--image', `${layout}:latest`, tar], { signal, timeoutMs: 600_000 })
      rmSync(tar)
    }
    await run(['umoci', 'config', '--image', `${layout}:latest`, '--config.env', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', '--config.cmd', 'python3'])
    await run(['umoci', 'gc', '--layout', layout])
    writeFileSync(done, '')
    return layout
  } finally {
    await run(['umount', merged], { mayFail: true })
    rmSync(work, { recursive: true, force: true })
  }
}

/** debootstrap's tree as a tar, kept between runs: it is the slow part. */
async function debootstrapTree(cache: string, work: string, say: Say, signal?: AbortSignal): Promise<string> {
  const mirror = debianMirror()
  const tar = join(cache, `debootstrap-${SUITE}-${createHash('sha256').update(mirror).digest('hex').slice(0, 8)}.tar`)
  if (existsSync(tar)) return tar
  say(`image: debootstrap ${SUITE} with python3 (about a minute, once)`)
  const target = join(work, 'debootstrap')
  await run(['debootstrap', '--variant=minbase', '--include=python3,ca-certificates', SUITE, target, mirror], { timeoutMs: 900_000, signal })
  rmSync(join(target, 'var/cache/apt/archives'), { recursive: true, force: true })
  mkdirSync(join(target, 'var/cache/apt/archives/partial'), { recursive: true })
  await run(['tar', '-C', target, '--xattrs', '--xattrs-include=*', '--numeric-owner', '-cf', `${tar}.part`, '.'], { signal })
  await run(['mv', `${tar}.part`, tar])
  rmSync(target, { recursive: true, force: true })
  return tar
}

/** The mirror this machine itself uses. */
function debianMirror(): string {
  const files = ['/etc/apt/sources.list', ...(existsSync('/etc/apt/sources.list.d') ? readdirSync('/etc/apt/sources.list.d').map((name) => `/etc/apt/sources.list.d/${name}`) : [])]
  for (const file of files) {
    if (!existsSync(file)) continue
    const text = readFileSync(file, 'utf8')
    const found = /^URIs:\s*(\S+\/debian\/?)\s*$/m.exec(text) ?? /^deb\s+(?:\[[^\]]*\]\s+)?(\S+\/debian\/?)\s/m.exec(text)
    if (found) return found[1]
  }
  throw new SkimmerError('NOT_FOUND', 'no Debian mirror in /etc/apt: name one in /etc/apt/sources.list, or run the demo with an image of your own: npm run demo -- IMAGE')
}

async function aptInstall(root: string, signal?: AbortSignal): Promise<void> {
  // The machine's own name resolution and apt settings, for the time of the installation only: they do not stay in the layer.
  const borrowed = ['/etc/resolv.conf', '/etc/hosts'].filter((file) => existsSync(file))
  for (const file of borrowed) await run(['cp', '--remove-destination', '--dereference', file, join(root, file)])
  writeFileSync(join(root, 'usr/sbin/policy-rc.d'), '#!/bin/sh\nexit 101\n')
  chmodSync(join(root, 'usr/sbin/policy-rc.d'), 0o755)
  const env = { DEBIAN_FRONTEND: 'noninteractive', PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' }
  await run(['chroot', root, 'apt-get', 'update'], { env, timeoutMs: 300_000, signal })
  await run(['chroot', root, 'apt-get', 'install', '-y', '--no-install-recommends', ...ADDED_PACKAGES], { env, timeoutMs: 900_000, signal })
  await run(['chroot', root, 'apt-get', 'clean'], { env, signal })
  for (const name of ['usr/sbin/policy-rc.d', 'etc/resolv.conf', 'etc/hosts']) rmSync(join(root, name), { force: true })
  for (const name of readdirSync(join(root, 'var/lib/apt/lists'))) rmSync(join(root, 'var/lib/apt/lists', name), { recursive: true, force: true })
}

/** Turns an overlay's upper directory into a layer: device 0:0 becomes `.wh.name` (opaque marks are directory xattrs and need `.wh..wh..opq`). */
function whiteoutsOf(directory: string): void {
  for (const name of readdirSync(directory)) {
    const path = join(directory, name)
    const stat = lstatSync(path)
    if (stat.isDirectory()) whiteoutsOf(path)
    else if (stat.isCharacterDevice() && stat.rdev === 0) {
      rmSync(path)
      writeFileSync(join(directory, `.wh.${name}`), '')
    }
  }
}

/** Replaced files, a replaced type, deleted files and an opaque directory. */
function writeThirdLayer(root: string, base: string): void {
  for (const directory of ['etc', 'usr/share/doc', 'opt/service', 'var/log', 'usr/share/common-licenses']) mkdirSync(join(root, directory), { recursive: true, mode: 0o755 })
  writeFileSync(join(root, 'etc/motd'), 'A service on Skimmer\n')
  writeFileSync(join(root, 'opt/service/start.py'), `${START_SCRIPT}\n`)
  symlinkSync('/opt/service/start.py', join(root, 'etc/service'))
  writeFileSync(join(root, 'etc/.wh.issue'), '')
  if (existsSync(join(base, 'etc/os-release'))) {
    // The symlink becomes a file: a replaced type.
    const target = readlinkSync(join(base, 'etc/os-release'))
    writeFileSync(join(root, 'etc/os-release'), readFileSync(join(base, 'etc', target)))
  }
  writeFileSync(join(root, 'usr/share/doc/.wh..wh..opq'), '')
  writeFileSync(join(root, 'usr/share/doc/README'), 'The documentation of the packages is not part of this image.\n')
  writeFileSync(join(root, 'usr/share/common-licenses/.wh.GPL-1'), '')
  utimesSync(join(root, 'etc/motd'), 1_700_000_000, 1_700_000_000)
}
