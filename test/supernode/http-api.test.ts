// The HTTP API as scripts and people use it: contract, guards, preheat jobs, console, metrics.
import { readFileSync } from 'node:fs'
import { request } from 'node:http'
import { afterEach, describe, expect, test } from '@jest/globals'
import { preheatRequestSchema } from '../../supernode/preheat-job.ts'
import type { ControlEvent } from '../../peer/control.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import { Cleanup, joinNode, push, startSupernode, tarOf, temporaryDirectory, until } from './lab.ts'

const cleanup = new Cleanup()
afterEach(() => cleanup.run())

interface Answer { status: number; body: any; headers: Record<string, string | string[] | undefined> }
/** fetch() refuses to set Host and Origin: this does not. */
function call(url: string, options: { method?: string; body?: unknown; headers?: Record<string, string> } = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const payload = options.body === undefined ? undefined : typeof options.body === 'string' ? options.body : JSON.stringify(options.body)
    const outgoing = request(url, { method: options.method ?? 'GET', headers: { ...(payload === undefined ? {} : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(payload)) }), ...options.headers } }, response => {
      let text = ''
      response.setEncoding('utf8').on('data', chunk => { text += chunk }).on('end', () => {
        const json = String(response.headers['content-type']).includes('json')
        resolve({ status: response.statusCode!, body: json ? JSON.parse(text) : text, headers: response.headers })
      })
    })
    outgoing.on('error', reject)
    outgoing.end(payload)
  })
}
const list = async (url: string) => (await call(`${url}/api/v1/preheats`)).body as { state: string; url: string; error?: { code: string } }[]
const finished = (job: { state: string }): boolean => job.state === 'SUCCESS' || job.state === 'FAILED'

describe('the HTTP API', () => {
  test('says who the supernode is, and that it is well', async () => {
    const supernode = await startSupernode(cleanup)
    const { body } = await call(`${supernode.httpUrl}/api/v1/identity`)
    expect(body).toMatchObject({ peerId: supernode.peerId, addrs: supernode.addrs, grantKey: expect.any(String), version: expect.any(String) })
    expect((await call(`${supernode.httpUrl}/healthz`)).status).toBe(200)
    expect((await call(`${supernode.httpUrl}/readyz`)).body).toBe('ready\n')
    const metrics = await call(`${supernode.httpUrl}/metrics`)
    for (const name of ['skimmer_supernode_peers', 'skimmer_supernode_origin_bytes', 'skimmer_supernode_preheat_jobs', 'skimmer_supernode_layers_in_work', 'skimmer_supernode_stream_source_bytes', 'skimmer_supernode_streams_in_work', 'skimmer_supernode_stream_followers']) expect(metrics.body).toContain(name)
  })

  test('has an OpenAPI document that names every route with its schemas', async () => {
    const supernode = await startSupernode(cleanup)
    const { body: document } = await call(`${supernode.httpUrl}/api/v1/openapi.json`)
    expect(document.openapi).toBe('3.1.0')
    expect(document.paths['/api/v1/preheats'].post.requestBody.content['application/json'].schema.properties).toHaveProperty('url')
    for (const [path, operations] of Object.entries(document.paths) as [string, Record<string, unknown>][]) {
      if (!('get' in operations) || path.includes('{')) continue
      expect((await call(`${supernode.httpUrl}${path}`)).status).toBe(200)
    }
  })

  test('refuses what it does not understand with a code, the field and no stack', async () => {
    const supernode = await startSupernode(cleanup)
    const preheats = `${supernode.httpUrl}/api/v1/preheats`
    const refused = async (options: Parameters<typeof call>[1]): Promise<unknown> => {
      const { status, body } = await call(preheats, { method: 'POST', ...options })
      expect(Object.keys(body)).toEqual(['code', 'message'])
      return [status, body.code]
    }
    expect(await refused({ body: '{"url":' })).toEqual([400, 'INVALID_ARGUMENT'])
    expect(await refused({ body: { url: 'a', surprise: 1 } })).toEqual([400, 'INVALID_ARGUMENT'])
    expect(await refused({ body: { url: 'UPPER CASE' } })).toEqual([400, 'INVALID_ARGUMENT'])
    expect(await refused({ body: { url: 'debian', scope: 'nodes' } })).toEqual([400, 'INVALID_ARGUMENT'])
    expect(await refused({ body: { url: 'no url', type: 'file' } })).toEqual([400, 'INVALID_ARGUMENT'])
    expect(await refused({ body: { url: 'debian', tag: 'only for files' } })).toEqual([400, 'INVALID_ARGUMENT'])
    expect(await refused({ body: { url: 'https://example.org/x', type: 'file', headers: { range: 'bytes=0-1' } } })).toEqual([400, 'INVALID_ARGUMENT'])
    expect(await refused({ body: { url: 'x'.repeat(400_000) } })).toEqual([429, 'LIMIT_EXCEEDED'])
    expect(await refused({ body: 'url=x', headers: { 'content-type': 'text/plain' } })).toEqual([400, 'INVALID_ARGUMENT'])
    expect((await call(`${preheats}/unknown`)).body.code).toBe('NOT_FOUND')
    expect((await call(`${preheats}/unknown`, { method: 'DELETE' })).status).toBe(404)
    expect((await call(`${supernode.httpUrl}/api/v1/nothing`)).body.code).toBe('NOT_FOUND')
    expect((await call(`${supernode.httpUrl}/api/v1/preheats/%ff`)).status).toBe(400)
  })

  test('lets only the token change things where one is set, and never a web page of another origin', async () => {
    const guarded = await startSupernode(cleanup, { http: { host: '127.0.0.1', port: 0, token: 'the-right-token' } })
    const remove = (headers: Record<string, string>) => call(`${guarded.httpUrl}/api/v1/preheats/x`, { method: 'DELETE', headers })
    expect((await remove({})).status).toBe(401)
    expect((await remove({ authorization: 'Bearer the-wrong-token' })).status).toBe(403)
    expect((await remove({ authorization: 'Bearer the-right-token' })).status).toBe(404)
    expect((await call(`${guarded.httpUrl}/api/v1/peers`)).status).toBe(200)

    const open = await startSupernode(cleanup)
    const here = (headers: Record<string, string>) => call(`${open.httpUrl}/api/v1/preheats/x`, { method: 'DELETE', headers })
    expect((await here({})).status).toBe(404)
    expect((await here({ origin: 'https://evil.example' })).status).toBe(403)
    expect((await here({ host: 'evil.example' })).status).toBe(403)
    expect((await here({ 'x-forwarded-for': '10.0.0.9' })).status).toBe(403)
  })

  test('has a console that takes nothing from elsewhere', async () => {
    const supernode = await startSupernode(cleanup)
    const { body, headers } = await call(`${supernode.httpUrl}/`)
    expect(body).toBe(readFileSync(new URL('../../supernode/console.html', import.meta.url), 'utf8'))
    expect(headers['content-security-policy']).toContain("default-src 'none'")
    expect(body).not.toMatch(/https?:\/\/|src=|innerHTML/)
  })
})

const withRegistry = haveRegistry ? describe : describe.skip
withRegistry('preheat (needs docker-registry)', () => {
  test('pulls, indexes and holds an image; shows it; lets go when the job is deleted', async () => {
    const registry = await startRegistry()
    cleanup.add(() => registry.stop())
    const made = await push(registry.host, 'team/app:1', [await tarOf({ a: 900_000 }), await tarOf({ b: 10_000 }, 2)])
    const supernode = await startSupernode(cleanup)
    const api = `${supernode.httpUrl}/api/v1`
    const { status, body: job } = await call(`${api}/preheats`, { method: 'POST', body: { url: made.reference } })
    expect(status).toBe(201)
    expect(job).toMatchObject({ state: 'WAITING', type: 'image', scope: 'supernode' })
    const done = await until(async () => {
      const { body } = await call(`${api}/preheats/${job.id}`)
      return finished(body) ? body : undefined
    })
    const bytes = made.layers.reduce((sum, layer) => sum + layer.size, 0)
    expect(done).toMatchObject({ state: 'SUCCESS', manifestDigest: made.manifestDigest, progress: { layers: 2, layersDone: 2, bytes, total: bytes } })
    expect((await call(`${api}/images`)).body).toMatchObject([{ references: [made.reference], indexed: true, bytes, layers: made.layers.map(({ digest }) => ({ digest })) }])
    const { body: resources } = await call(`${api}/resources`)
    expect(resources.map((resource: { whole: boolean; pinned: boolean }) => [resource.whole, resource.pinned])).toEqual([[true, true], [true, true]])

    const path = `${api}/resources/${encodeURIComponent(resources[0].id)}`
    expect((await call(path, { method: 'DELETE' })).body.code).toBe('CONFLICT')
    expect((await call(`${api}/preheats/${job.id}`, { method: 'DELETE' })).status).toBe(204)
    expect((await call(path, { method: 'DELETE' })).status).toBe(204)
    expect((await call(`${api}/resources`)).body).toHaveLength(1)
  })

  test('of what does not exist fails and says why; jobs survive a restart', async () => {
    const registry = await startRegistry()
    cleanup.add(() => registry.stop())
    const made = await push(registry.host, 'app:1', [await tarOf({ a: 10_000 })])
    const dataDir = await temporaryDirectory(cleanup)
    const first = await startSupernode(cleanup, { dataDir })
    for (const url of [made.reference, `${registry.host}/nothing:1`]) await call(`${first.httpUrl}/api/v1/preheats`, { method: 'POST', body: { url } })
    await until(async () => (await list(first.httpUrl)).every(finished))
    const before = await list(first.httpUrl)
    expect(before.map(job => [job.state, job.error?.code])).toEqual([['FAILED', 'NOT_FOUND'], ['SUCCESS', undefined]])
    await first.stop()
    const second = await startSupernode(cleanup, { dataDir })
    expect(await list(second.httpUrl)).toEqual(before)
    expect(second.parts.store.list().map(resource => resource.pinned)).toEqual([true])
  })

  test('pushed to chosen nodes tells those alone, and succeeds when they hold it', async () => {
    const registry = await startRegistry()
    cleanup.add(() => registry.stop())
    const made = await push(registry.host, 'app:1', [await tarOf({ a: 50_000 })])
    const supernode = await startSupernode(cleanup)
    const [chosen, other] = [await joinNode(cleanup, supernode), await joinNode(cleanup, supernode)]
    const stop = new AbortController()
    cleanup.add(() => stop.abort())
    const events = new Map<string, ControlEvent[]>([[chosen.peerId, []], [other.peerId, []]])
    for (const node of [chosen, other]) node.control.call('events', {}, { signal: stop.signal, onProgress: event => events.get(node.peerId)!.push(event) }).catch(() => {})
    await until(() => supernode.parts.control.listeners.length === 2)

    const api = `${supernode.httpUrl}/api/v1/preheats`
    const { body: job } = await call(api, { method: 'POST', body: { url: made.reference, scope: 'nodes', nodes: [chosen.peerId] } })
    const [event] = await until(() => events.get(chosen.peerId)!.length > 0 && events.get(chosen.peerId)!)
    expect(event).toMatchObject({ type: 'hold', reference: made.reference, manifestDigest: made.manifestDigest })
    expect((await call(`${api}/${job.id}`)).body).toMatchObject({ state: 'RUNNING', progress: { nodes: 1, nodesDone: 0 } })
    const image = await chosen.control.call('image.resolve', { reference: made.reference, manifestDigest: made.manifestDigest })
    await chosen.control.call('announce', { have: image.layers.map(layer => ({ resource: `layer:${layer.index}`, whole: true as const })), gone: [] })
    await until(async () => (await call(`${api}/${job.id}`)).body.state === 'SUCCESS')
    expect(events.get(other.peerId)).toEqual([])

    const { body: deaf } = await call(api, { method: 'POST', body: { url: made.reference, scope: 'nodes', nodes: ['nobody'] } })
    const failed = await until(async () => {
      const { body } = await call(`${api}/${deaf.id}`)
      return finished(body) ? body : undefined
    })
    expect(failed).toMatchObject({ state: 'FAILED', error: { code: 'UNAVAILABLE' } })
  })

  test('is asked for with a schema that keeps scope and nodes together', () => {
    expect(preheatRequestSchema.parse({ url: 'debian' })).toEqual({ type: 'image', url: 'debian', scope: 'supernode', hold: true })
    expect(preheatRequestSchema.safeParse({ url: 'debian', nodes: ['x'] }).success).toBe(false)
  })
})
