// Reading sources in tests: everything opened is closed again after each test.
import { afterEach } from '@jest/globals'
import { Sources, openSource } from '../../source/sources.ts'
import type { Source, SourceHead, SourceOpenOptions } from '../../source/source.ts'
import { startHost } from '../oci/http-fixture.ts'
import type { Answer, FakeHost } from '../oci/http-fixture.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

/** Called when the test is over, in reverse order. */
export const afterTest = (cleanup: () => unknown): void => void cleanups.push(cleanup)

export function source(url: string, options: Parameters<typeof openSource>[1] = {}): Source {
  const opened = openSource(url, { backoffMs: 2, ...options })
  afterTest(() => opened.close())
  return opened
}

export function sources(...words: ConstructorParameters<typeof Sources>): Sources {
  const made = new Sources(words[0], { backoffMs: 2, ...words[1] })
  afterTest(() => made.close())
  return made
}

export async function host(answer: Answer, tls?: { key: string; cert: string }): Promise<FakeHost> {
  const started = await startHost(answer, tls)
  afterTest(() => started.stop())
  return started
}

export async function bytesOf(body: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  for await (const chunk of body) chunks.push(chunk)
  return Buffer.concat(chunks)
}

export async function read(from: Source, options: SourceOpenOptions = {}): Promise<{ head: SourceHead; unchanged: boolean; bytes: Buffer }> {
  const { head, unchanged, body } = await from.open(options)
  return { head, unchanged: unchanged === true, bytes: body === undefined ? Buffer.alloc(0) : await bytesOf(body) }
}

/** First byte of a Range header, 0 without one. */
export const rangeStart = (header: string | undefined): number => Number(/^bytes=(\d+)-/.exec(header ?? 'bytes=0-')![1])
