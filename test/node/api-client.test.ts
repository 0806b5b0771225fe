// The CLI's calls to the node: every way they can go wrong is an error that says which node and what to do.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type RequestListener, type Server } from 'node:http'
import { createServer as createSocketServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { callNode } from '../../node/api/client.ts'
import { skimmer } from './run-cli.ts'

let directory: string
let socket: string
const servers: { close(done: () => void): unknown; closeAllConnections?(): void }[] = []

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'skimmer-api-'))
  socket = join(directory, 'api.sock')
})
afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections?.()
    await new Promise<void>((resolve) => server.close(resolve))
  }
  rmSync(directory, { recursive: true, force: true })
})

async function node(answer: RequestListener): Promise<void> {
  const server: Server = createServer(answer)
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(socket, resolve))
}

describe('a call to the node', () => {
  test('sends JSON and answers JSON', async () => {
    await node(async (request, response) => {
      const chunks: Buffer[] = []
      for await (const chunk of request) chunks.push(chunk as Buffer)
      response.end(JSON.stringify({ method: request.method, url: request.url, body: JSON.parse(Buffer.concat(chunks).toString()) as unknown }))
    })
    expect(await callNode(socket, '/v1/mounts', { method: 'POST', body: { reference: 'a' } })).toEqual({ method: 'POST', url: '/v1/mounts', body: { reference: 'a' } })
  })

  test('an error of the node arrives with its code and words', async () => {
    await node((_, response) => response.writeHead(404).end(JSON.stringify({ code: 'NOT_FOUND', message: 'no such image' })))
    await expect(callNode(socket, '/v1/image')).rejects.toMatchObject({ code: 'NOT_FOUND', message: 'no such image' })
  })

  test.each([
    ['an unknown code', 500, JSON.stringify({ code: 'SURPRISE', message: 'x' }), 'UNAVAILABLE', /answered 500/],
    ['no JSON', 200, '<html>', 'INVALID_DATA', /is not JSON/],
    ['an empty failure', 502, '', 'UNAVAILABLE', /answered 502/],
  ])('%s', async (_, status, body, code, message) => {
    await node((_request, response) => response.writeHead(status).end(body))
    await expect(callNode(socket, '/v1/status')).rejects.toMatchObject({ code, message: expect.stringMatching(message) })
  })

  test('no node listens: the socket is named, and what to do', async () => {
    await expect(callNode(socket, '/v1/status')).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringMatching(/no node listens on .*api\.sock \(ENOENT\): start one with `skimmer node`/) })
  })

  test('a node that does not answer, one that hangs up, and a caller that gives up', async () => {
    await node(() => {})
    await expect(callNode(socket, '/v1/status', { timeoutMs: 50 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    const controller = new AbortController()
    const call = callNode(socket, '/v1/status', { signal: controller.signal })
    controller.abort()
    await expect(call).rejects.toMatchObject({ code: 'ABORTED' })
  })

  test('a process that speaks something else on the socket', async () => {
    const server = createSocketServer((connection) => void connection.resume().end('220 mail.example ESMTP\r\n'))
    servers.push(server)
    await new Promise<void>((resolve) => server.listen(socket, resolve))
    await expect(callNode(socket, '/v1/status')).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  })

  test('the commands print what the node says, and end with the exit code of its error', async () => {
    await node((request, response) => {
      if (request.url === '/v1/explain') return void response.end(JSON.stringify({ snapshots: [{ name: 'sha256:1', kind: 'committed', parent: '', lazy: false, why: 'its tar is broken' }], readFailures: [{ at: 0, waitedMs: 1500, reason: 'no peer had it' }] }))
      response.writeHead(401).end(JSON.stringify({ code: 'UNAUTHORIZED', message: 'the registry refuses the credentials' }))
    })
    const explain = await skimmer(['explain', '--socket', socket])
    expect(explain).toMatchObject({ code: 0, stderr: '' })
    expect(explain.stdout).toBe('ordinary  committed  sha256:1: its tar is broken\na read failed at 1970-01-01T00:00:00.000Z after 1.50 s: no peer had it\n')
    expect(await skimmer(['inspect', 'private/image', '--socket', socket])).toEqual({ code: 4, stdout: '', stderr: 'skimmer: the registry refuses the credentials\n' })
    expect(JSON.parse((await skimmer(['explain', '--json'], { env: { SKIMMER_SOCKET: socket } })).stdout)).toMatchObject({ snapshots: [{ lazy: false }] })
  })
})
