// Follows a supernode's download: its head, its parts and their hashes go into the download's content as the supernode tells them.
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { ControlProgress } from './control.ts'
import type { DownloadContent } from './download-content.ts'
import type { DownloadRequest } from './download-request.ts'
import type { Peer } from './peer.ts'

/** A supernode that tells more than this before the store has taken it in is not one of ours. */
const MAX_UNTAKEN = 100_000

type Told = ControlProgress<'file.open'>

/**
 * Resolves when the supernode has told everything: the content is `known` then. Errors: what the supernode answers; UNAVAILABLE or TIMEOUT when
 * it is lost (all others were asked by then); CONFLICT when it tells of another version than is known; INVALID_DATA when it makes no sense.
 */
export async function followTable(components: { peer: Peer; content: DownloadContent; onFetched: (bytes: number) => void }, ask: NonNullable<DownloadRequest['ask']>, signal: AbortSignal): Promise<void> {
  const { peer, content, onFetched } = components
  const over = new AbortController()
  const work = AbortSignal.any([signal, over.signal])
  let untaken = 0
  let taking = Promise.resolve()
  let failure: unknown

  async function take(told: Told): Promise<void> {
    if ('head' in told) content.setHead(told.head)
    else if ('fetched' in told) onFetched(told.fetched)
    else if ('part' in told) {
      checkName(content, ask, told.part.resource)
      peer.grants.take(told.part.grant)
      content.openPart(await content.addPart(told.part))
    } else learn(content, told.hashes)
  }

  // One after another: hashes need their part, and parts come in order.
  function enqueue(told: Told): void {
    if (++untaken > MAX_UNTAKEN) throw new SkimmerError('LIMIT_EXCEEDED', `${content.name}: the supernode tells more than can be taken in`)
    taking = taking.then(async () => {
      untaken--
      if (failure !== undefined || work.aborted) return
      try {
        await take(told)
      } catch (error) {
        failure = error
        over.abort(error)
      }
    })
  }

  try {
    const options = { signal: work, key: keyOf(ask), onProgress: enqueue, onAsked: (peerId: string) => { content.supernode = peerId } }
    // The two operations have the same progress and answer; TypeScript pairs each request with its own only.
    const answer = ask.operation === 'file.open' ? await peer.supernodes.call('file.open', ask.request, options) : await peer.supernodes.call('blob.open', ask.request, options)
    await taking
    if (failure !== undefined) throw failure
    if (content.parts.length < answer.parts || content.end !== answer.length) throw new SkimmerError('INVALID_DATA', `${content.name}: the supernode told of ${content.end} bytes in ${content.parts.length} parts, and then of ${answer.length} in ${answer.parts}`)
    content.finish()
    if (!content.known) throw new SkimmerError('INVALID_DATA', `${content.name}: the supernode ended without telling the hashes of all blocks`)
  } catch (error) {
    await taking
    signal.throwIfAborted()
    throw failure ?? error
  }
}

/** What decides which supernode is asked first: the same for all who ask for the same. */
function keyOf(ask: NonNullable<DownloadRequest['ask']>): string {
  return ask.operation === 'blob.open' ? `blob:${ask.request.digest}` : ask.request.url ?? ask.request.resource ?? ''
}

/** A supernode names files, and the blob that it was asked for: nothing else may be filled by it. */
function checkName(content: DownloadContent, ask: NonNullable<DownloadRequest['ask']>, resource: string): void {
  const right = ask.operation === 'blob.open' ? resource === `blob:${ask.request.digest}` : resource.startsWith('file:')
  if (!right) throw new SkimmerError('INVALID_DATA', `${content.name}: the supernode tells of ${resource}, which is something else`)
}

function learn(content: DownloadContent, told: { resource: string; from: number; hashes: string }): void {
  const part = content.part(told.resource)
  if (part === undefined) throw new SkimmerError('INVALID_DATA', `${content.name}: hashes of ${told.resource}, which is no part of it`)
  try {
    part.resource.learn(told.from, Buffer.from(told.hashes, 'base64'))
  } catch (cause) {
    // What the store has is not what the supernode has, under one name: one of them is of no use.
    if (hasCode(cause, 'INVALID_DATA')) throw new SkimmerError('CONFLICT', `${content.name}: ${cause.message}; ask for it again`, { cause, details: { discard: true } })
    throw cause
  }
}
