// Clients that pull images through HTTPS_PROXY: TLS opened, blobs through the swarm, everything else from the registry itself.
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { LabProcess, run } from '../../bench/lab/process.ts'
import { staticCredentials } from '../../oci/credentials.ts'
import { digestOf } from '../../oci/digest.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { type MadeImage, pushImage } from '../oci/image-fixture.ts'
import { haveRegistry, type RunningRegistry, startRegistry } from '../oci/registry-fixture.ts'
import { until } from './forward-lab.ts'
import { tarOf } from './forward-tar.ts'
import { SwarmLab } from './forward-swarm-lab.ts'

const have = (program: string): boolean => spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0
const haveSkopeo = have('skopeo')
const haveDocker = have('dockerd') && spawnSync('/usr/bin/docker', ['--version'], { stdio: 'ignore' }).status === 0 && process.getuid?.() === 0
const describeWith = haveRegistry ? describe : describe.skip

let lab: SwarmLab
let registry: RunningRegistry
let image: MadeImage
let authorityFile: string
const LAYERS = [randomBytes(2_500_000), randomBytes(300_000)]
const AUTH = { username: 'ann', password: 'her secret' }

/** The registry is called registry.test: Go's clients pass loopback names by the proxy. */
async function begin(auth?: typeof AUTH): Promise<void> {
  lab = new SwarmLab()
  const server = lab.certificate('server')
  registry = await startRegistry({ tls: { certificate: server.certFile, key: server.keyFile }, ...(auth !== undefined && { auth }) })
  const hosts = { [registry.host]: { ca: server.cert } }
  const client = new RegistryClient({ hosts, ...(auth !== undefined && { credentials: staticCredentials({ [registry.host]: auth }) }) })
  try {
    image = await pushImage(client, parseReference(`${registry.host}/team/app:1`), await Promise.all(LAYERS.map((bytes, index) => tarOf(`file${index}`, bytes))))
  } finally {
    await client.close()
  }
  const authority = lab.certificate('authority', { authority: true })
  authorityFile = authority.certFile
  await lab.startSwarm(
    { rules: [{ match: '^https://registry\\.test/v2/.*/blobs/sha256:', redirect: registry.host }, { match: '^https://registry\\.test/', through: 'direct', redirect: registry.host }], intercept: { cert: authority.cert, key: authority.key, hosts: [{ match: '^registry\\.test$' }] }, otherwise: 'refuse' },
    hosts,
  )
}

const environment = (): Record<string, string> => ({ HTTPS_PROXY: lab.url, https_proxy: lab.url, NO_PROXY: '', no_proxy: '', SSL_CERT_FILE: authorityFile, HOME: lab.directory })
/** How often the registry sent a layer's blob. */
const sent = async (): Promise<number> => [...(await registry.log()).matchAll(/"GET \/v2\/team\/app\/blobs\/(sha256:[0-9a-f]{64})[^"]*" 200 /g)].filter(([, digest]) => image.layers.some((layer) => layer.digest === digest)).length
const blobs = (): Promise<number> => lab.counted('skimmer_forward_requests_total', { way: 'blob', outcome: 'ok' })

afterEach(async () => {
  await lab.end()
  await registry.stop()
})

describeWith('skopeo through HTTPS_PROXY', () => {
  const test_ = haveSkopeo ? test : test.skip
  const copy = async (name: string, ...more: string[]): Promise<{ code: number; stderr: string; directory: string }> => {
    const directory = join(lab.directory, name)
    const result = await run(['skopeo', 'copy', '--insecure-policy', ...more, 'docker://registry.test/team/app:1', `dir:${directory}`], { env: environment(), mayFail: true })
    return { ...result, directory }
  }
  const same = (directory: string): void => {
    for (const { digest, bytes } of image.layers) expect(readFileSync(join(directory, digest.slice(7))).equals(bytes)).toBe(true)
    expect(digestOf(readFileSync(join(directory, 'manifest.json')))).toBe(image.manifestDigest)
  }

  test_('copies an image byte for byte; a second copy asks the registry for no blob', async () => {
    await begin()
    const first = await copy('first')
    expect(first).toMatchObject({ code: 0 })
    same(first.directory)
    // Its log is written after the answer.
    await until(async () => (await sent()) === image.layers.length)
    const second = await copy('second')
    same(second.directory)
    await until(async () => (await blobs()) === 2 * (image.layers.length + 1))
    expect(await sent()).toBe(image.layers.length)
  })

  test_('a private image only with its password', async () => {
    await begin(AUTH)
    const refused = await copy('refused')
    expect(refused.code).not.toBe(0)
    const { directory } = await copy('granted', '--src-creds', `${AUTH.username}:${AUTH.password}`)
    same(directory)
    // What is here by now is given to nobody else.
    expect((await copy('refused again')).code).not.toBe(0)
    expect((await copy('wrong', '--src-creds', `${AUTH.username}:wrong`)).code).not.toBe(0)
    expect(lab.logged.join('')).not.toMatch(/her secret|YW5uOmhlciBzZWNyZXQ/)
  })
})

describeWith('Docker through HTTPS_PROXY', () => {
  let docker: LabProcess | undefined
  beforeEach(() => {
    docker = undefined
  })
  afterEach(() => docker?.stop())

  ;(haveDocker ? test : test.skip)('pulls an image whose blobs come through the swarm', async () => {
    await begin()
    const place = join(lab.directory, 'd')
    mkdirSync(place)
    const socket = join(place, 's.sock')
    docker = new LabProcess('dockerd', ['dockerd', '--iptables=false', '--ip6tables=false', '--ip-forward=false', '--bridge=none', '--storage-driver=vfs', '--data-root', join(place, 'data'), '--exec-root', join(place, 'exec'), '--config-file', lab.file('daemon.json', '{}'), '-H', `unix://${socket}`, '-p', join(place, 'pid')], { logFile: join(place, 'log'), env: environment() })
    const ctl = ['/usr/bin/docker', '-H', `unix://${socket}`]
    await docker.until('it answered', async () => (await run([...ctl, 'info'], { mayFail: true })).code === 0)
    const { stdout } = await run([...ctl, 'pull', 'registry.test/team/app:1'])
    expect(stdout).toContain(`Digest: ${image.manifestDigest}`)
    await until(async () => (await blobs()) === image.layers.length + 1)
    await docker.stop()
  })
})
