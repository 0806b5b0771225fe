// How the registry proxy reads what clients send: ranges, Accept, paths, names of registries, and its settings.
import { describe, expect, test } from '@jest/globals'
import { assert, integer, property, string } from 'fast-check'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LabProcess } from '../../bench/lab/process.ts'
import { loadSettings } from '../../command-line/settings.ts'
import { PROXY_SETTINGS, proxyOptions } from '../../node/config/proxy-settings.ts'
import { accepts, wishKey } from '../../registry-proxy/accept.ts'
import { absoluteChallenges } from '../../registry-proxy/answers.ts'
import { wantedRange } from '../../registry-proxy/byte-range.ts'
import { routeOf } from '../../registry-proxy/routes.ts'
import { chooseUpstream, upstreamRules } from '../../registry-proxy/upstream-choice.ts'
import { freePort } from '../oci/registry-fixture.ts'
import { makeCertificates } from '../oci/http-fixture.ts'

describe('ranges', () => {
  const wanted = (range: string, size = 100, ifRange?: string) => wantedRange({ range, 'if-range': ifRange }, size, '"x"')

  test('what the RFC says', () => {
    expect(wanted('bytes=0-9')).toEqual({ kind: 'part', from: 0, to: 10 })
    expect(wanted('bytes=90-')).toEqual({ kind: 'part', from: 90, to: 100 })
    expect(wanted('bytes=90-1000')).toEqual({ kind: 'part', from: 90, to: 100 })
    expect(wanted('bytes=-5')).toEqual({ kind: 'part', from: 95, to: 100 })
    expect(wanted('bytes=-500')).toEqual({ kind: 'part', from: 0, to: 100 })
    expect(wanted('Bytes = 1 - 2')).toEqual({ kind: 'part', from: 1, to: 3 })
    for (const range of ['bytes=100-', 'bytes=-0']) expect(wanted(range)).toEqual({ kind: 'unsatisfiable' })
    const huge = '9'.repeat(400)
    expect(wanted(`bytes=0-${huge}`)).toEqual({ kind: 'part', from: 0, to: 100 })
    expect(wanted('bytes=7-99999999999999999999')).toEqual({ kind: 'part', from: 7, to: 100 })
    expect(wanted(`bytes=-${huge}`)).toEqual({ kind: 'part', from: 0, to: 100 })
    for (const range of [`bytes=${huge}-`, `bytes=${huge}-${huge}`, 'bytes=99999999999999999999-']) expect(wanted(range)).toEqual({ kind: 'unsatisfiable' })
    expect(wanted(`bytes=${'0'.repeat(40)}1-2`)).toEqual({ kind: 'part', from: 1, to: 3 })
    expect(wanted('bytes=0-', 0)).toEqual({ kind: 'unsatisfiable' })
    expect(wanted('bytes=0-1, 5-6')).toEqual({ kind: 'several' })
    for (const range of ['bytes=', 'bytes=a-b', 'bytes=5-1', 'pages=1-2', 'bytes=-', 'bytes=1', '']) expect(wanted(range)).toEqual({ kind: 'whole' })
    expect(wanted('bytes=0-9', 100, '"x"')).toEqual({ kind: 'part', from: 0, to: 10 })
    expect(wanted('bytes=0-9', 100, '"y"')).toEqual({ kind: 'whole' })
  })

  test('whatever stands there, a part lies inside', () => {
    assert(property(string(), integer({ min: 0, max: 1000 }), (text, size) => {
      for (const range of [text, `bytes=${text}`]) {
        const found = wanted(range, size)
        if (found.kind === 'part') expect(found.from >= 0 && found.from < found.to && found.to <= size).toBe(true)
      }
    }))
    assert(property(integer({ min: -50, max: 2000 }), integer({ min: -50, max: 2000 }), integer({ min: 0, max: 1000 }), (first, last, size) => {
      const found = wanted(`bytes=${first < 0 ? '' : first}-${last < 0 ? '' : last}`, size)
      if (found.kind === 'part') expect(found.from >= 0 && found.from < found.to && found.to <= size).toBe(true)
    }))
  })
})

test('Accept: the most specific wish decides, and no wish takes all', () => {
  expect(accepts(undefined, 'a/b')).toBe(true)
  expect(accepts('a/b, c/d', 'C/D; x=1')).toBe(true)
  expect(accepts('a/b', 'c/d')).toBe(false)
  expect(accepts('c/*', 'c/d')).toBe(true)
  expect(accepts('*/*;q=0.1', 'c/d')).toBe(true)
  expect(accepts('*/*, c/d;q=0', 'c/d')).toBe(false)
  expect(wishKey('a/b, c/d')).toBe(wishKey('c/d;q=0.5,a/b'))
  expect(wishKey('a/b')).not.toBe(wishKey('c/d'))
})

test('paths of the spec, and all others', () => {
  expect(routeOf('GET', '/v2/')).toEqual({ kind: 'ping' })
  expect(routeOf('HEAD', '/v2')).toEqual({ kind: 'ping' })
  expect(routeOf('GET', '/v2/a/manifests/b/manifests/1')).toEqual({ kind: 'manifest', name: 'a/manifests/b', reference: '1' })
  expect(routeOf('GET', '/v2/a/tags/list')).toEqual({ kind: 'tags', name: 'a' })
  expect(routeOf('GET', '/v2/a/blobs/sha256%3Aab')).toEqual({ kind: 'blob', name: 'a', reference: 'sha256:ab' })
  for (const [method, path, status] of [['PUT', '/v2/a/manifests/1', 405], ['POST', '/v2/a/blobs/uploads/', 405], ['PATCH', '/v2/a/blobs/uploads/x', 405], ['GET', '/v2/a/blobs/uploads/x', 405], ['GET', '/v1/', 404], ['GET', '/v2/_catalog', 404], ['GET', '/v2/a', 404], ['GET', '/v2/a/blobs/%', 400]] as const) {
    expect(routeOf(method, path)).toMatchObject({ kind: 'refused', status })
  }
  assert(property(string(), string(), (method, path) => { routeOf(method, `/v2/${path}`) }))
})

test('which registry is meant', () => {
  const rules = upstreamRules({ registry: 'docker.io', hosts: { 'mirror.local': 'quay.io' } })
  const chosen = (name: string, query = '', headers: Record<string, string> = {}): string => {
    const { registry, repository, named } = chooseUpstream(rules, name, new URLSearchParams(query), headers)
    return `${named} ${registry} ${repository}`
  }
  expect(chosen('debian')).toBe('default docker.io library/debian')
  expect(chosen('team/app', 'ns=ghcr.io', { host: 'mirror.local:4001' })).toBe('ns ghcr.io team/app')
  expect(chosen('team/app', 'ns=registry-1.docker.io')).toBe('ns docker.io team/app')
  expect(chosen('team/app', '', { 'x-dragonfly-registry': 'https://index.docker.io' })).toBe('header docker.io team/app')
  expect(chosen('team/app', '', { host: 'MIRROR.local:4001' })).toBe('host quay.io team/app')
  expect(chosen('registry.example__5000/team/app')).toBe('path registry.example:5000 team/app')
  expect(chosen('ghcr.io/team/app', 'ns=quay.io')).toBe('ns quay.io ghcr.io/team/app')
  for (const [name, query] of [['A/b', ''], ['a//b', ''], ['a/../b', ''], ['a', 'ns=a b'], ['a', 'ns=..'], ['a', `ns=${'a'.repeat(300)}`]]) expect(() => chosen(name, query)).toThrow(/is not a repository name|does not name a registry/)
  expect(() => chooseUpstream(upstreamRules({ registry: 'docker.io', registries: ['docker.io'] }), 'a/b', new URLSearchParams('ns=quay.io'), {})).toThrow('does not serve the registry quay.io')
})

test('a relative token server is found where the registry is, and nothing else of a challenge changes', () => {
  const asked = new URL('https://registry.example/v2/')
  expect(absoluteChallenges('Basic realm="/here"', asked)).toEqual(['Basic realm="/here"'])
  expect(absoluteChallenges('Bearer realm="https://auth.example/token",service="a"', asked)).toEqual(['Bearer realm="https://auth.example/token",service="a"'])
  expect(absoluteChallenges(['Basic realm="x"', 'bearer service="a", realm="/token?x=1"'], asked)).toEqual(['Basic realm="x"', 'bearer service="a", realm="https://registry.example/token?x=1"'])
})

describe('settings', () => {
  const options = (flags: Record<string, unknown>) => proxyOptions(loadSettings(PROXY_SETTINGS, flags, {}), { host: '127.0.0.1', port: 1 })

  test('what is wrong is named by its key', () => {
    expect(options({ proxyHosts: ['a.local=quay.io'], proxyStaleTags: '0' })).toMatchObject({ hosts: { 'a.local': 'quay.io' }, staleTagsMs: 0, registry: 'docker.io', ownCredentials: false })
    expect(loadSettings(PROXY_SETTINGS, {}, {})['proxy.listen']).toBeUndefined()
    expect(() => options({ proxyHosts: ['quay.io'] })).toThrow('proxy.hosts')
    expect(() => options({ proxyHosts: ['a=b c'] })).toThrow('proxy.hosts')
    expect(() => options({ proxyRegistry: 'no registry' })).toThrow('proxy.registry')
    expect(() => options({ proxyTlsCert: '/nowhere' })).toThrow('proxy.tls-key')
    expect(() => options({ proxyTlsCert: '/nowhere', proxyTlsKey: '/nowhere' })).toThrow('proxy.tls-cert')
  })

  test('skimmer proxy runs without anything else, over TLS if told, and stops when told', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'skimmer-alone-'))
    const { certificate, key, ca } = makeCertificates(directory)
    const port = await freePort()
    const metricsPort = await freePort()
    writeFileSync(join(directory, 'config.yaml'), `root: ${directory}/root\nlisten: [/ip4/127.0.0.1/tcp/0]\nmetrics: {listen: "127.0.0.1:${metricsPort}"}\nproxy: {listen: "127.0.0.1:${port}", tls-cert: ${certificate}, tls-key: ${key}}\n`)
    const proxy = new LabProcess('skimmer proxy', [process.execPath, join(import.meta.dirname, '../../node/cli.ts'), 'proxy', '--config', join(directory, 'config.yaml')], { logFile: join(directory, 'log') })
    try {
      await proxy.until('it answered', async () => {
        const probe = new LabProcess('curl', ['curl', '-fsS', '--cacert', ca, '-o', join(directory, 'answer'), `https://127.0.0.1:${port}/healthz`], { logFile: join(directory, 'curl.log') })
        await new Promise((resolve) => probe.child.once('close', resolve))
        return probe.child.exitCode === 0
      })
      expect(await (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text()).toContain('skimmer_proxy_requests_total{kind="other",outcome="hit"}')
      const taken = createServer()
      await new Promise<void>((resolve, reject) => taken.once('error', () => resolve()).listen(port, '127.0.0.1', () => reject(new Error('nobody listens there'))))
      await proxy.stop()
      expect(proxy.child.exitCode).toBe(0)
    } finally {
      await proxy.stop()
      rmSync(directory, { recursive: true, force: true })
    }
  }, 60_000)
})
