// A small but real image: this machine's own shell and tools with their libraries, in layers that also delete, replace and hide files.
import { createHash } from 'node:crypto'
import { chmodSync, chownSync, copyFileSync, existsSync, mkdirSync, readFileSync, realpathSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { run } from '../../bench/lab/process.ts'

export interface TinyImage {
  readonly name: string
  /** An OCI layout, and the same as a tar for `ctr images import`. */
  readonly layout: string
  readonly archive: string
  /** Lowest first. */
  readonly diffIds: readonly string[]
  readonly layers: readonly { readonly digest: string; readonly size: number; readonly path: string }[]
}

const TOOLS = ['sh', 'cat', 'ls', 'find', 'sleep', 'sha256sum', 'stat', 'sort', 'mkdir', 'rm']
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** Three layers: tools and files; deletions, an opaque directory, odd modes and owners; one more file. */
export async function makeTinyImage(directory: string, name: string): Promise<TinyImage> {
  const base = join(directory, 'base')
  await copyTools(base)
  write(join(base, 'etc/motd'), 'first layer\n')
  write(join(base, 'data/kept'), 'x'.repeat(200_000))
  write(join(base, 'data/deleted'), 'gone\n')
  write(join(base, 'hidden/below'), 'hidden by an opaque directory\n')
  mkdirSync(join(base, 'tmp'))
  chmodSync(join(base, 'tmp'), 0o1777)
  for (const empty of ['proc', 'sys', 'dev', 'run']) mkdirSync(join(base, empty))

  const second = join(directory, 'second')
  write(join(second, 'data/.wh.deleted'), '')
  write(join(second, 'hidden/.wh..wh..opq'), '')
  write(join(second, 'hidden/above'), 'seen\n')
  write(join(second, 'etc/motd'), 'second layer\n')
  write(join(second, 'owned'), 'by someone else\n')
  chownSync(join(second, 'owned'), 1000, 2000)
  chmodSync(join(second, 'owned'), 0o4640)
  symlinkSync('../data/kept', join(second, 'etc/link'))

  const third = join(directory, 'third')
  write(join(third, 'data/added'), 'third layer\n')
  return packImage(directory, name, [base, second, third])
}

/** `name` as `host/repository:tag`; each directory becomes one gzip layer. */
export async function packImage(directory: string, name: string, layers: readonly string[]): Promise<TinyImage> {
  const layout = join(directory, 'layout')
  mkdirSync(join(layout, 'blobs/sha256'), { recursive: true })
  const put = (bytes: Uint8Array): { digest: string; size: number; path: string } => {
    const hex = sha256(bytes)
    const path = join(layout, 'blobs/sha256', hex)
    writeFileSync(path, bytes)
    return { digest: `sha256:${hex}`, size: bytes.length, path }
  }
  const diffIds: string[] = []
  const blobs: ReturnType<typeof put>[] = []
  for (const layer of layers) {
    const tar = `${layer}.tar.gz`
    await run(['tar', '-C', layer, '--format=pax', '--numeric-owner', '--sort=name', '--mtime=@1700000000.123456789', '--pax-option=delete=atime,delete=ctime', '-czf', tar, '.'])
    const bytes = readFileSync(tar)
    rmSync(tar)
    blobs.push(put(bytes))
    diffIds.push(`sha256:${sha256(gunzipSync(bytes))}`)
  }
  const json = (value: object): ReturnType<typeof put> => put(Buffer.from(JSON.stringify(value)))
  const config = json({ architecture: 'amd64', os: 'linux', config: { Cmd: ['/bin/sh'], Env: ['PATH=/bin'] }, rootfs: { type: 'layers', diff_ids: diffIds } })
  const manifest = json({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', digest: config.digest, size: config.size },
    layers: blobs.map(({ digest, size }) => ({ mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest, size })),
  })
  writeFileSync(join(layout, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}')
  const annotations = { 'io.containerd.image.name': name, 'org.opencontainers.image.ref.name': 'latest' }
  writeFileSync(join(layout, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [{ mediaType: 'application/vnd.oci.image.manifest.v1+json', digest: manifest.digest, size: manifest.size, platform: { architecture: 'amd64', os: 'linux' }, annotations }] }))
  const archive = join(directory, 'image.tar')
  await run(['tar', '-C', layout, '-cf', archive, '.'])
  return { name, layout, archive, diffIds, layers: blobs }
}

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, text)
}

async function copyTools(root: string): Promise<void> {
  const files = new Set<string>()
  for (const tool of TOOLS) {
    const path = ['/bin', '/usr/bin'].map((directory) => join(directory, tool)).find((candidate) => existsSync(candidate))
    if (path === undefined) throw new Error(`this machine has no ${tool}`)
    const target = join(root, 'bin', tool)
    mkdirSync(dirname(target), { recursive: true })
    copyFileSync(realpathSync(path), target)
    chmodSync(target, statSync(path).mode & 0o777)
    const { stdout } = await run(['ldd', path], { mayFail: true })
    for (const [library] of stdout.matchAll(/\/\S+(?= \(0x)/g)) files.add(library)
  }
  for (const library of files) {
    mkdirSync(dirname(join(root, library)), { recursive: true })
    copyFileSync(realpathSync(library), join(root, library))
    chmodSync(join(root, library), 0o755)
  }
}
