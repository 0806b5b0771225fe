// Credentials from docker's config.json, podman's auth.json and credential helpers.
import { afterAll, beforeAll, beforeEach, afterEach, describe, expect, test } from '@jest/globals'
import { chmod, mkdtemp, mkdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { askCredentialHelper } from '../../oci/credential-helper.ts'
import { loadDockerConfig } from '../../oci/docker-config.ts'

let directory: string
const saved = { ...process.env }
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'skimmer-credentials-'))
})
afterAll(() => rm(directory, { recursive: true, force: true }))
beforeEach(() => {
  process.env.PATH = `${directory}:${saved.PATH}`
})
afterEach(() => {
  for (const name of ['PATH', 'REGISTRY_AUTH_FILE', 'DOCKER_CONFIG', 'XDG_RUNTIME_DIR', 'HOME']) {
    if (saved[name] === undefined) delete process.env[name]
    else process.env[name] = saved[name]
  }
})
const base64 = (text: string) => Buffer.from(text).toString('base64')
const loginOf = (name: string) => ({ auths: { r: { auth: base64(`${name}:x`) } } })
async function config(document: unknown, name = 'config.json'): Promise<string> {
  const path = join(directory, name)
  await writeFile(path, typeof document === 'string' ? document : JSON.stringify(document))
  return path
}
async function helper(name: string, script: string): Promise<void> {
  const path = join(directory, `docker-credential-${name}`)
  await writeFile(path, `#!/bin/sh\n${script}\n`)
  await chmod(path, 0o755)
}

describe('a docker config', () => {
  test('knows registries by all the spellings that are in use', async () => {
    const source = loadDockerConfig(
      await config({
        auths: {
          'https://index.docker.io/v1/': { auth: base64('hub:a:b') }, 'registry:5000': { auth: base64('plain:p\0') }, 'https://ghcr.io/v2/': { username: 'u', password: 'p' },
          'token.example': { identitytoken: 'refresh' }, 'outright.example': { registrytoken: 'bearer' }, 'empty.example': {},
          'quay.io': { auth: base64('all:1') }, 'quay.io/team': { auth: base64('team:2') }, 'quay.io/team/app': { auth: base64('app:3') },
        },
      }),
    )
    expect(await source.get('docker.io')).toEqual({ username: 'hub', password: 'a:b' })
    expect(await source.get('registry:5000')).toEqual({ username: 'plain', password: 'p' })
    expect(await source.get('ghcr.io', { repository: 'x/y' })).toEqual({ username: 'u', password: 'p' })
    expect(await source.get('token.example')).toEqual({ identityToken: 'refresh' })
    expect(await source.get('outright.example')).toEqual({ registryToken: 'bearer' })
    for (const [repository, username] of [['other', 'all'], ['team/x', 'team'], ['team/app', 'app'], ['teams', 'all'], [undefined, 'all']]) expect(await source.get('quay.io', { repository })).toMatchObject({ username })
    for (const unknown of ['registry', 'registry:5001', 'empty.example', 'evil-ghcr.io']) expect(await source.get(unknown)).toBeUndefined()
  })

  test('is found where the environment says; without one there are no credentials', async () => {
    process.env.HOME = join(directory, 'nobody')
    delete process.env.XDG_RUNTIME_DIR
    delete process.env.REGISTRY_AUTH_FILE
    process.env.DOCKER_CONFIG = join(directory, 'nowhere')
    expect(await loadDockerConfig().get('r')).toBeUndefined()
    await mkdir(join(directory, 'docker'))
    await config(loginOf('docker'), 'docker/config.json')
    process.env.DOCKER_CONFIG = join(directory, 'docker')
    expect(await loadDockerConfig().get('r')).toMatchObject({ username: 'docker' })
    process.env.REGISTRY_AUTH_FILE = await config(loginOf('podman'), 'auth.json')
    expect(await loadDockerConfig().get('r')).toMatchObject({ username: 'podman' })
    await expect(loadDockerConfig(join(directory, 'missing.json')).get('r')).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('that is broken is an error which shows nothing of it', async () => {
    for (const document of ['{"auths": {"r": {"auth": "c2VjcmV0"}}}', '{"auths": {"r": {"auth": 7}}}', '{"secret', '[]']) {
      const error = (await loadDockerConfig(await config(document)).get('r').catch((thrown: unknown) => thrown)) as Error
      expect(error).toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('config.json') })
      expect(error.message).not.toContain('secret')
    }
  })
})

describe('a credential helper', () => {
  test('is asked by the protocol, for its own registries or for all, and may know nothing', async () => {
    await helper('some', 'read server; test "$1" = get || exit 9; case $server in one:5000) echo "{\\"ServerURL\\": \\"$server\\", \\"Username\\": \\"from-helper\\", \\"Secret\\": \\"s\\"}";; https://index.docker.io/v1/) echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"refresh\\"}";; *) echo "credentials not found in native keychain"; exit 1;; esac')
    const source = loadDockerConfig(await config({ credsStore: 'some', credHelpers: { 'special.example': 'broken' }, auths: { 'file.example': { auth: base64('from:file') } } }))
    expect(await source.get('one:5000')).toEqual({ username: 'from-helper', password: 's' })
    expect(await source.get('docker.io')).toEqual({ identityToken: 'refresh' })
    expect(await source.get('file.example')).toEqual({ username: 'from', password: 'file' })
    expect(await source.get('other.example')).toBeUndefined()
    await helper('broken', 'echo "the secret is hunter2"; echo hunter2 >&2; exit 3')
    const error = (await source.get('special.example').catch((thrown: unknown) => thrown)) as Error
    expect(error).toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('docker-credential-broken') })
    expect(error.message).not.toContain('hunter2')
  })

  test('that is missing, talks nonsense, never ends or never stops talking is an error in bounded time', async () => {
    await expect(askCredentialHelper('not-there', 'r')).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('PATH') })
    await expect(askCredentialHelper('../../bin/sh', 'r')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await helper('nonsense', 'echo hunter2')
    await expect(askCredentialHelper('nonsense', 'r')).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.not.stringContaining('hunter2') })
    await helper('endless', 'exec sleep 1000')
    await expect(askCredentialHelper('endless', 'r', undefined, 100)).rejects.toMatchObject({ code: 'TIMEOUT' })
    await expect(askCredentialHelper('endless', 'r', AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' })
    await helper('talkative', 'exec yes')
    await expect(askCredentialHelper('talkative', 'r')).rejects.toMatchObject({ code: 'LIMIT_EXCEEDED' })
  })
})
