// Blobs, whole or in part: by way of this machine's store, its peers, the supernode, and at last the registry; to clients that the registry would serve.
import type { Logger } from 'pino'
import type { CredentialSource } from '../oci/credentials.ts'
import { isDigest } from '../oci/digest.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { parseContentRange } from '../oci/content-range.ts'
import { discard } from '../oci/transport.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { Download } from '../peer/download.ts'
import type { Downloads } from '../peer/downloads.ts'
import { answerProblem, passOn } from './answers.ts'
import type { Outcome } from './answers.ts'
import { blobSource, registryBlob } from './blob-source.ts'
import type { BlobWish } from './blob-source.ts'
import { wantedRange } from './byte-range.ts'
import { handedCredentials } from './caller.ts'
import type { ClientAccess } from './client-access.ts'
import { LayerBlobs } from './layer-blobs.ts'
import { DEFAULT_CLIENT_IDLE_MS, LOOK_UP_MS, MAX_REFUSAL_BYTES } from './proxy-options.ts'
import { headerOf, isKnown } from './proxy-request.ts'
import type { ProxyRequest } from './proxy-request.ts'
import { sendBody } from './send-body.ts'
import { isTrouble } from './upstream-requests.ts'
import type { SmallAnswer, UpstreamRequests } from './upstream-requests.ts'
import { WrongBlobs } from './wrong-blobs.ts'

type Allowed = { readonly size: number; readonly offline: boolean } | { readonly outcome: Outcome }

export class Blobs {
  readonly #upstream: UpstreamRequests
  readonly #access: ClientAccess
  readonly #downloads: Downloads
  readonly #store: BlockStore
  readonly #layers: LayerBlobs
  readonly #wrong = new WrongBlobs()
  readonly #credentials: CredentialSource | undefined
  readonly #logger: Logger
  readonly #onBytes: (bytes: number) => void
  readonly #idleMs: number

  constructor(
    components: { upstream: UpstreamRequests; access: ClientAccess; downloads: Downloads; store: BlockStore; credentials?: CredentialSource; logger: Logger; onBytes: (bytes: number) => void },
    options: { clientIdleMs?: number } = {},
  ) {
    this.#upstream = components.upstream
    this.#access = components.access
    this.#downloads = components.downloads
    this.#store = components.store
    this.#layers = new LayerBlobs({ store: components.store })
    this.#credentials = components.credentials
    this.#logger = components.logger
    this.#onBytes = components.onBytes
    this.#idleMs = options.clientIdleMs ?? DEFAULT_CLIENT_IDLE_MS
  }

  stop(): void {
    this.#layers.stop()
  }

  async answer(request: ProxyRequest, digest: string): Promise<Outcome> {
    const { response, incoming, method } = request
    if (!isDigest(digest)) {
      answerProblem(response, 400, 'DIGEST_INVALID', `${JSON.stringify(digest.slice(0, 140))} is not a sha256 or sha512 digest`)
      return 'invalid'
    }
    const allowed = await this.#allowed(request, digest)
    if ('outcome' in allowed) return allowed.outcome
    const { size } = allowed
    const etag = `"${digest}"`
    const headers = { 'docker-content-digest': digest, etag, 'accept-ranges': 'bytes', 'cache-control': 'max-age=31536000' }
    if (isKnown(headerOf(incoming.headers['if-none-match']), etag)) {
      response.writeHead(304, headers)
      response.end()
      return 'hit'
    }
    const range = method === 'HEAD' ? { kind: 'whole' as const } : wantedRange(incoming.headers, size, etag)
    if (range.kind === 'several') {
      answerProblem(response, 400, 'UNSUPPORTED', 'this mirror answers one range at a time: ask for each on its own')
      return 'invalid'
    }
    if (range.kind === 'unsatisfiable') {
      response.setHeader('content-range', `bytes */${size}`)
      answerProblem(response, 416, 'RANGE_INVALID', `the blob has ${size} bytes`)
      return 'invalid'
    }
    const { from, to } = range.kind === 'part' ? range : { from: 0, to: size }
    const begin = (): void => {
      response.writeHead(range.kind === 'part' ? 206 : 200, {
        'content-type': 'application/octet-stream', ...headers, 'content-length': to - from,
        ...(range.kind === 'part' && { 'content-range': `bytes ${from}-${to - 1}/${size}` }),
      })
    }
    if (method === 'HEAD' || from === to) {
      begin()
      response.end()
      return 'hit'
    }
    const whole = from === 0 && to === size
    if (!whole) this.#wrong.refuseParts(digest)
    try {
      const outcome = await this.#send(request, digest, allowed, { from, to }, begin)
      if (whole) this.#wrong.right(digest)
      return outcome
    } catch (error) {
      if (hasCode(error, 'DIGEST_MISMATCH')) this.#wrong.seen(digest)
      throw error
    }
  }

  /** From the nearest place that has these bytes. DIGEST_MISMATCH: wrong ones were seen, and the answer is not whole. */
  async #send(request: ProxyRequest, digest: string, { size, offline }: { size: number; offline: boolean }, { from, to }: { from: number; to: number }, begin: () => void): Promise<Outcome> {
    const { response, signal } = request
    const body = { length: to - from, idleMs: this.#idleMs, onBytes: this.#onBytes }
    const whole = from === 0 && to === size
    const layer = this.#layers.find(digest)
    if (layer !== undefined && this.#layers.size(layer) === size) {
      try {
        await sendBody(response, this.#layers.read(layer, from, to), begin, body)
        return 'hit'
      } catch (error) {
        // Damaged on this disk, which was found in time: the blob comes another way.
        if (!hasCode(error, 'DIGEST_MISMATCH', 'NOT_FOUND') || response.headersSent) throw error
      }
    }
    const wish: BlobWish = { digest, size, upstream: request.upstream, caller: request.caller, mirrored: request.mirrored }
    if (!digest.startsWith('sha256:')) {
      // Resources are named by sha256; the rest passes through, checked all the same.
      await sendBody(response, registryBlob(this.#upstream, wish, { from, to, signal }), begin, body)
      return 'passed'
    }
    const here = this.#store.get(`blob:${digest}`)?.whole === true
    try {
      await this.#download(request, wish, (download) => sendBody(response, download.read(whole ? {} : { from, to }, { signal }), begin, body))
    } catch (error) {
      if (!hasCode(error, 'DIGEST_MISMATCH') || response.headersSent || !whole) throw error
      // What the swarm has or had under this name was wrong. The registry's bytes may be right by now; they are checked again.
      await sendBody(response, registryBlob(this.#upstream, wish, { from, to, signal }), begin, body)
      return 'passed'
    }
    return offline ? 'stale' : here ? 'hit' : 'miss'
  }

  /** An error of `use` before the first byte is an answer; after it, a broken connection. Only a read without a range is checked against the digest. */
  async #download(request: ProxyRequest, wish: BlobWish, use: (download: Download) => Promise<void>): Promise<void> {
    const download = await this.#open(wish, request.signal)
    let wrong = false
    try {
      await use(download)
    } catch (error) {
      // Of what is only damaged on this disk most blocks are right: the next read finds the others.
      wrong = hasCode(error, 'DIGEST_MISMATCH') && error.details.damaged !== true
      throw error
    } finally {
      download.release()
      if (wrong) await this.#discard(wish.digest)
    }
  }

  /** Wrong bytes were kept under this digest: without them there is nothing to quarantine, and the next download begins anew. */
  async #discard(digest: string): Promise<void> {
    const id = `blob:${digest}`
    try {
      await this.#store.remove(id)
      await this.#store.endQuarantine(id)
    } catch (error) {
      this.#logger.debug({ resource: id, err: error }, 'a wrong blob is still in use')
    }
  }

  async #open(wish: BlobWish, signal: AbortSignal): Promise<Download> {
    const { digest, size, upstream } = wish
    const credentials = await handedCredentials(wish.caller, upstream, this.#credentials)
    const open = (): Promise<Download> => this.#downloads.open({
      key: `blob:${digest}`,
      local: `blob:${digest}`,
      ask: { operation: 'blob.open', request: { reference: `${upstream.registry}/${upstream.repository}`, digest, size, ...(credentials !== undefined && { credentials }) } },
      source: blobSource(this.#upstream, wish),
      digest,
    }, { signal })
    try {
      return await open()
    } catch (error) {
      // It may have been another client's credentials that ran out on a download they share: these were good a moment ago.
      if (!hasCode(error, 'UNAUTHORIZED', 'FORBIDDEN')) throw error
      return await open()
    }
  }

  /** Would the registry give this blob to this client? By what it said in the last minutes, else by asking it. */
  async #allowed(request: ProxyRequest, digest: string): Promise<Allowed> {
    const { caller, upstream, signal } = request
    const known = this.#access.sizeOf(upstream, digest)
    if (known !== undefined && this.#access.mayRead(caller, upstream, digest)) return { size: known, offline: false }
    let answer: SmallAnswer
    let size: number | undefined
    try {
      ;({ answer, size } = await this.#lookUp(request, digest, AbortSignal.any([signal, AbortSignal.timeout(LOOK_UP_MS)])))
    } catch (error) {
      if (!hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) throw error
      const offline = this.#offline(request, digest)
      if (offline === undefined) throw error
      return offline
    }
    if (size !== undefined) {
      this.#access.granted(caller, upstream, digest, size)
      return { size, offline: false }
    }
    if (isTrouble(answer.status)) {
      const offline = this.#offline(request, digest)
      if (offline !== undefined) return offline
    }
    if (answer.status === 401 || answer.status === 403) this.#access.refused(caller, upstream)
    if (answer.status === 404) this.#access.missing(upstream, digest)
    if (answer.status >= 200 && answer.status < 400) throw new SkimmerError('INVALID_DATA', `${upstream.registry} does not say how large the blob ${digest} is`)
    return { outcome: passOn(request.response, answer, {}, 'BLOB_UNKNOWN') }
  }

  #offline(request: ProxyRequest, digest: string): Allowed | undefined {
    const { caller, upstream } = request
    if (!this.#access.mayReadOffline(caller, upstream, digest)) return undefined
    const layer = this.#layers.find(digest)
    const resource = layer ?? this.#store.get(`blob:${digest}`)
    const size = this.#access.sizeOf(upstream, digest) ?? resource?.table.rawOffsets[resource.table.count]
    if (size === undefined) return undefined
    // What is not here yet may still be had from peers and the supernode.
    this.#logger.debug({ registry: upstream.registry, digest }, 'the registry cannot be asked: its last answer to this client counts')
    return { size, offline: true }
  }

  /** A HEAD; where that is not understood (storage behind a redirect is signed for GET alone), the first byte. `size` is set when the registry would serve. */
  async #lookUp(request: ProxyRequest, digest: string, signal: AbortSignal): Promise<{ answer: SmallAnswer; size?: number }> {
    const { caller, upstream, mirrored } = request
    const path = `blobs/${digest}`
    const answer = await this.#upstream.small({ method: 'HEAD', upstream, caller, mirrored, path, signal }, MAX_REFUSAL_BYTES)
    const size = sizeIn(answer.headers['content-length'])
    if (answer.status === 200 && size !== undefined) return { answer, size }
    if (answer.status === 401 || answer.status === 404 || isTrouble(answer.status)) return { answer }
    const got = await this.#upstream.send({ method: 'GET', upstream, caller, mirrored, path, headers: { range: 'bytes=0-0' }, signal })
    const { status, headers, asked } = got
    const total = status === 206 ? parseContentRange(headers['content-range'])?.total : status === 200 ? sizeIn(headers['content-length']) : status === 416 ? parseContentRange(headers['content-range'])?.total : undefined
    if (total !== undefined) {
      got.body.on('error', () => {}).destroy()
      return { answer: { status, headers, asked, bytes: Buffer.alloc(0) }, size: total }
    }
    const chunks: Buffer[] = []
    let length = 0
    for await (const chunk of got.body as AsyncIterable<Buffer>) {
      length += chunk.length
      if (length > MAX_REFUSAL_BYTES) break
      chunks.push(chunk)
    }
    await discard(got.body)
    return { answer: { status, headers, asked, bytes: Buffer.concat(chunks) } }
  }
}

function sizeIn(header: string | undefined): number | undefined {
  return header !== undefined && /^[0-9]{1,16}$/.test(header) && Number.isSafeInteger(Number(header)) ? Number(header) : undefined
}
