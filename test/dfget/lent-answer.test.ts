// Answers of a daemon, read into a few buffers: any length, cut anywhere, slow readers; and everything that is no such answer.
import { afterEach, describe, expect, jest, test } from '@jest/globals'
import * as fc from 'fast-check'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LentAnswer } from '../../dfget/lent-answer.ts'
import { sampleBytes } from './run-dfget.ts'

jest.setTimeout(60_000)

const directory = mkdtempSync(join(tmpdir(), 'skimmer-lent-'))
const servers: { close(): void }[] = []
afterEach(() => {
  for (const server of servers.splice(0)) server.close()
})
process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
let number = 0

/** A socket on which every call is answered by `answer`. */
async function serve(answer: (socket: Socket) => void): Promise<string> {
  const path = join(directory, `${number++}.sock`)
  const server: Server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => answer(socket))
  }).listen(path)
  servers.push(server)
  await new Promise((resolve) => server.once('listening', resolve))
  return path
}

async function bodyOf(answer: LentAnswer, wait: () => Promise<unknown> | undefined = () => undefined): Promise<Buffer> {
  await answer.head
  const copies: Buffer[] = []
  for (let chunks = await answer.next(); chunks.length > 0; chunks = await answer.next()) {
    await wait()
    copies.push(...chunks.map((chunk) => Buffer.from(chunk)))
  }
  return Buffer.concat(copies)
}

describe('an answer', () => {
  test('as Node writes it, known length and not, read slowly: every byte, in order', async () => {
    const content = sampleBytes(9_000_001)
    for (const known of [true, false]) {
      const path = join(directory, `${number++}.sock`)
      const server = createHttpServer((request, response) => {
        let asked = ''
        request.on('data', (chunk) => (asked += chunk)).on('end', () => {
          expect(asked).toBe('{"a":"ü"}')
          if (known) response.setHeader('content-length', content.length)
          for (let at = 0; at < content.length; at += 100_003) response.write(content.subarray(at, at + 100_003))
          response.end()
        })
      }).listen(path)
      servers.push(server)
      await new Promise((resolve) => server.once('listening', resolve))
      const answer = LentAnswer.begin(path, '/v1/files', '{"a":"ü"}')
      expect((await bodyOf(answer, () => new Promise((resolve) => setImmediate(resolve)))).equals(content)).toBe(true)
      expect([answer.status, answer.headers.get('content-length')]).toEqual([200, known ? String(content.length) : undefined])
    }
  })

  test('cut anywhere', async () => {
    await fc.assert(fc.asyncProperty(
      fc.array(fc.uint8Array({ minLength: 1, maxLength: 40 }), { maxLength: 6 }),
      fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1 }),
      fc.boolean(),
      async (chunks, cuts, chunked) => {
        const content = Buffer.concat(chunks)
        const body = chunked ? Buffer.concat([...chunks.flatMap((chunk) => [Buffer.from(`${chunk.length.toString(16)};x=y\r\n`), Buffer.from(chunk), Buffer.from('\r\n')]), Buffer.from('0\r\nTrailer: x\r\n\r\n')]) : content
        const wire = Buffer.concat([Buffer.from(`HTTP/1.1 200 OK\r\nX-A:  b \r\n${chunked ? 'Transfer-Encoding: chunked' : `Content-Length: ${content.length}`}\r\n\r\n`), body])
        const path = await serve((socket) => {
          let at = 0
          const next = (): void => {
            if (at >= wire.length) return void socket.end()
            const length = cuts[at % cuts.length]
            socket.write(wire.subarray(at, (at += length)), () => setImmediate(next))
          }
          next()
        })
        const answer = LentAnswer.begin(path, '/', '{}')
        expect((await bodyOf(answer)).equals(content)).toBe(true)
        expect(answer.headers.get('x-a')).toBe('b')
        answer.destroy()
        for (const server of servers.splice(0)) server.close()
      },
    ), { numRuns: 60 })
  })
})

describe('no answer', () => {
  test.each([
    ['ended early', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345', 'broke off'],
    ['ended early, in chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n', 'broke off'],
    ['ended in the head', 'HTTP/1.1 200 OK\r\nConte', 'broke off'],
    ['nothing', '', 'broke off'],
    ['something else', 'SSH-2.0-x\r\n\r\n', 'is not HTTP/1.1'],
    ['no length', 'HTTP/1.1 200 OK\r\n\r\n12345', 'tells no length'],
    ['a head without end', `HTTP/1.1 200 OK\r\n${'a: b\r\n'.repeat(20_000)}`, 'head of the answer is too long'],
    ['too much', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n12345', 'more came'],
    ['no size', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n', 'has no size'],
    ['a size without end', `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${'1'.repeat(5000)}`, 'line of the answer is too long'],
  ])('%s', async (_, wire, said) => {
    const path = await serve((socket) => socket.end(wire))
    await expect(bodyOf(LentAnswer.begin(path, '/', '{}'))).rejects.toThrow(said)
  })

  test('nobody is there', async () => {
    await expect(bodyOf(LentAnswer.begin(join(directory, 'nobody.sock'), '/', '{}'))).rejects.toMatchObject({ code: 'ENOENT', syscall: 'connect' })
  })
})
