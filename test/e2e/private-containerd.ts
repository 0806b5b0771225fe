// A real containerd of the test's own: its directories, its socket, and what it unpacks the ordinary way.
import { execFile, spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, openSync, closeSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { buildTar } from '../image/tar-builder.ts'

const run = promisify(execFile)
const SNAPSHOTTER = 'overlayfs'

/** Why these tests cannot run here; '' when they can. */
export const whyNoContainerd = [
  process.getuid?.() === 0 ? '' : 'needs root',
  ...['containerd', 'ctr', 'python3', 'perl'].map((tool) => (spawnSync('sh', ['-c', `command -v ${tool}`]).status === 0 ? '' : `needs ${tool}`)),
]
  .filter((reason) => reason !== '')
  .join(', ')

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

/** The chainID of layers, lowest first. */
export const chainId = (diffIds: readonly string[]): string => diffIds.reduce((chain, diffId) => (chain === '' ? diffId : sha256(Buffer.from(`${chain} ${diffId}`))), '')

/** An image of these uncompressed layers (lowest first) as the archive `ctr images import` takes. */
export function ociArchive(reference: string, layers: readonly Buffer[]): Buffer {
  const diffIds = layers.map(sha256)
  const config = Buffer.from(JSON.stringify({ architecture: process.arch === 'x64' ? 'amd64' : process.arch, os: 'linux', config: {}, rootfs: { type: 'layers', diff_ids: diffIds } }))
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: { mediaType: 'application/vnd.oci.image.config.v1+json', digest: sha256(config), size: config.length },
      layers: layers.map((layer) => ({ mediaType: 'application/vnd.oci.image.layer.v1.tar', digest: sha256(layer), size: layer.length })),
    }),
  )
  const descriptor = { mediaType: 'application/vnd.oci.image.manifest.v1+json', digest: sha256(manifest), size: manifest.length, annotations: { 'io.containerd.image.name': reference } }
  const blobs = new Map([config, manifest, ...layers].map((bytes) => [sha256(bytes).slice(7), bytes]))
  return buildTar([
    { name: 'oci-layout', data: JSON.stringify({ imageLayoutVersion: '1.0.0' }) },
    { name: 'index.json', data: JSON.stringify({ schemaVersion: 2, manifests: [descriptor] }) },
    ...[...blobs].map(([digest, data]) => ({ name: `blobs/sha256/${digest}`, data })),
  ])
}

/** containerd cannot unpack this image. */
export class UnpackRefused extends Error {}

export class PrivateContainerd {
  readonly directory: string
  #process: ChildProcess
  #mounts: string[] = []
  #count = 0

  private constructor(directory: string, child: ChildProcess) {
    this.directory = directory
    this.#process = child
  }

  static async start(): Promise<PrivateContainerd> {
    const directory = mkdtempSync(join(tmpdir(), 'skimmer-containerd-'))
    const config = [
      'version = 2',
      `root = '${directory}/root'`,
      `state = '${directory}/state'`,
      "disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.aufs']",
      `[grpc]\naddress = '${directory}/containerd.sock'`,
      "[ttrpc]\naddress = ''",
      "[debug]\nlevel = 'warn'",
      "[plugins.'io.containerd.gc.v1.scheduler']\nschedule_delay = '1h'", // a view may be collected before it can be labelled
    ]
    writeFileSync(join(directory, 'config.toml'), config.join('\n'))
    const log = openSync(join(directory, 'log'), 'w')
    const child = spawn('containerd', ['--config', join(directory, 'config.toml')], { stdio: ['ignore', log, log] })
    closeSync(log)
    const containerd = new PrivateContainerd(directory, child)
    try {
      await containerd.#ready()
    } catch (error) {
      await containerd.stop()
      throw error
    }
    return containerd
  }

  async #ready(): Promise<void> {
    for (const end = Date.now() + 30_000; Date.now() < end; await delay(50)) {
      if (this.#process.exitCode !== null) throw new Error(`containerd ended with ${this.#process.exitCode}; see ${this.directory}/log`)
      if (!existsSync(join(this.directory, 'containerd.sock'))) continue
      const ok = await this.ctr('version').then(
        () => true,
        () => false,
      )
      if (ok) return
    }
    throw new Error('containerd did not answer within 30 s')
  }

  async ctr(...words: string[]): Promise<string> {
    const { stdout } = await run('ctr', ['--address', join(this.directory, 'containerd.sock'), '--namespace', 'test', ...words], { maxBuffer: 1 << 26 })
    return stdout
  }

  /** Unpacks layers (uncompressed tars, lowest first) the ordinary way and mounts what a view of them shows. Rejects with UnpackRefused when containerd does. */
  async unpack(layers: readonly Buffer[]): Promise<string> {
    const name = `image-${this.#count++}`
    const archive = join(this.directory, `${name}.tar`)
    writeFileSync(archive, ociArchive(`test.invalid/${name}:latest`, layers))
    try {
      await this.ctr('images', 'import', '--snapshotter', SNAPSHOTTER, archive)
    } catch (error) {
      throw new UnpackRefused(String((error as { stderr?: string }).stderr ?? error), { cause: error })
    } finally {
      rmSync(archive)
    }
    const view = await this.ctr('snapshots', '--snapshotter', SNAPSHOTTER, 'view', '--mounts', name, chainId(layers.map(sha256)))
    const [mount] = JSON.parse(view) as { Type: string; Source: string; Options: string[] }[]
    const target = join(this.directory, `${name}.mounted`)
    mkdirSync(target)
    await run('mount', ['-t', mount.Type, '-o', mount.Options.join(','), mount.Source, target])
    this.#mounts.push(target)
    return target
  }

  async stop(): Promise<void> {
    for (const mount of this.#mounts.toReversed()) await run('umount', [mount]).catch(() => run('umount', ['-l', mount]))
    this.#mounts = []
    if (this.#process.exitCode === null) {
      const ended = new Promise((resolve) => this.#process.once('exit', resolve))
      this.#process.kill('SIGTERM')
      const killer = setTimeout(() => this.#process.kill('SIGKILL'), 10_000)
      await ended
      clearTimeout(killer)
    }
    rmSync(this.directory, { recursive: true, force: true })
  }
}
