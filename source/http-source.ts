// http:// and https://: head and body in one GET, parts by Range, another version noticed before a byte of it is given away.
import type { IncomingHttpHeaders } from 'node:http'
import { parseContentRange } from '../oci/content-range.ts'
import type { RegistryClientOptions } from '../oci/defaults.ts'
import { SkimmerError } from '../oci/errors.ts'
import { shownUrl } from '../oci/network-errors.ts'
import { sendPersistently } from '../oci/retry.ts'
import { discard } from '../oci/transport.ts'
import type { HttpResponse, Transport } from '../oci/transport.ts'
import { refusal } from './http-answer.ts'
import { HttpBody } from './http-body.ts'
import { splitHeaders } from './request-headers.ts'
import type { Headers } from './request-headers.ts'
import type { Source, SourceAnswer, SourceHead, SourceOpenOptions } from './source.ts'
import { formatVersion, ifRange, parseVersion, sameVersion, unlessSame, validatorsOf } from './version.ts'
import type { Validators } from './version.ts'

/** Read ahead of the reader inside the HTTP client; larger costs memory a connection and gains nothing measurable. */
const READ_AHEAD_BYTES = 256 * 1024

export interface HttpSourceOptions extends RegistryClientOptions {
  /** Normalized; an Authorization made of the URL's user and password is already in them. */
  readonly headers: Headers
  readonly onClose?: () => Promise<void>
}

interface Asked {
  readonly offset: number
  readonly length: number | undefined
  readonly version: Validators | undefined
  readonly ifNot: Validators | undefined
  readonly ranged: boolean
  readonly orAll: boolean
}

export class HttpSource implements Source {
  readonly url: URL
  readonly #target: URL | (() => Promise<URL>)
  readonly #transport: Transport
  readonly #options: HttpSourceOptions
  readonly #what: string

  /** `target` without user and password; a function is asked before each request, and `url` is shown for it. */
  constructor(components: { target: URL; url?: undefined; transport: Transport } | { target: () => Promise<URL>; url: URL; transport: Transport }, options: HttpSourceOptions) {
    this.#target = components.target
    this.#transport = components.transport
    this.#options = options
    this.url = components.url ?? new URL(shownUrl(components.target))
    this.#what = `reading ${this.url.href}`
  }

  async close(): Promise<void> {
    await this.#options.onClose?.()
  }

  async open(options: SourceOpenOptions = {}): Promise<SourceAnswer> {
    const asked = this.#asked(options)
    const response = await this.#send(asked, options.signal)
    try {
      return await this.#answer(response, asked, options)
    } catch (error) {
      response.body.on('error', () => {}).destroy()
      throw error
    }
  }

  #asked({ offset = 0, length, version, ifNot, orAll = false }: SourceOpenOptions): Asked {
    for (const value of [offset, length ?? 0]) {
      if (!Number.isSafeInteger(value) || value < 0) throw new SkimmerError('INVALID_ARGUMENT', `${this.#what}: ${value} is no position of a byte`)
    }
    const known = version === undefined ? undefined : parseVersion(version)
    // Nothing but that one answer is of such a version: asking would only cost.
    if (version !== undefined && (known === undefined || known.kind === 'read')) throw this.#conflict('it gives no ETag and no Last-Modified to tell its versions by')
    return { offset, length, version: known, ifNot: ifNot === undefined ? undefined : parseVersion(ifNot), ranged: offset > 0 || length !== undefined, orAll }
  }

  async #send(asked: Asked, signal: AbortSignal | undefined): Promise<HttpResponse> {
    const { own, forAnyone } = splitHeaders(this.#options.headers)
    // A part of no bytes cannot be asked for; one byte is the least.
    const last = asked.length === undefined ? '' : asked.offset + Math.max(asked.length, 1) - 1
    const headers = {
      ...forAnyone,
      ...(asked.ranged && { range: `bytes=${asked.offset}-${last}` }),
      ...(asked.ranged && asked.version !== undefined && ifRange(asked.version)),
      ...(asked.ifNot !== undefined && unlessSame(asked.ifNot)),
    }
    const url = this.#target instanceof URL ? this.#target : await this.#target()
    const request = { method: 'GET' as const, url, what: this.#what, headers, ownHeaders: own, readAhead: READ_AHEAD_BYTES, signal }
    return await sendPersistently(this.#transport, request, this.#options)
  }

  async #answer(response: HttpResponse, asked: Asked, options: SourceOpenOptions): Promise<SourceAnswer> {
    const { status, headers } = response
    if (status === 304 && asked.ifNot !== undefined) return await this.#unchanged(response, asked.ifNot, options)
    if (status === 416 && asked.ranged) return await this.#outside(response, asked, options)
    if (status !== 200 && status !== 203 && status !== 206) throw await refusal(response, this.#what)
    if (status === 206 && !asked.ranged) throw new SkimmerError('INVALID_DATA', `${this.#what}: ${response.url.host} sends a part although all was asked for`)

    const bytes = contentLength(headers)
    const part = status === 206 ? this.#part(response, asked) : undefined
    const total = part === undefined ? bytes : part.total
    const validators = validatorsOf(headers, total)
    const head = this.#head(headers, validators, total, status === 206 || (!asked.ranged && acceptsRanges(headers)))
    if (asked.ifNot !== undefined && sameVersion(asked.ifNot, validators)) {
      // It ignores conditions: the body is not wanted.
      response.body.on('error', () => {}).destroy()
      return { head: { ...head, version: options.ifNot! }, unchanged: true }
    }
    if (asked.version !== undefined) this.#checkVersion(asked.version, validators, headers, status, total)
    const offset = part === undefined && asked.orAll ? 0 : asked.offset
    const length = part === undefined && asked.orAll ? undefined : asked.length
    if (part === undefined && total !== undefined && offset > total) throw this.#tooFar(asked, total)
    const cut = part === undefined
      ? { skip: offset, take: length, expected: total === undefined ? undefined : total - offset }
      : { skip: 0, take: length === 0 ? 0 : part.bytes, expected: part.bytes }
    const body = new HttpBody(response.body, { ...cut, what: this.#what, url: response.url, signal: options.signal })
    const bodyLength = cut.expected === undefined ? undefined : Math.min(cut.expected, cut.take ?? cut.expected)
    return { head: options.version === undefined ? head : { ...head, version: options.version }, body, offset, ...(bodyLength !== undefined && { bodyLength }) }
  }

  /** Checks a 206 against what was asked. */
  #part(response: HttpResponse, asked: Asked): { bytes: number; total: number | undefined } {
    const written = String(response.headers['content-range']).slice(0, 80)
    const range = parseContentRange(response.headers['content-range'])
    const what = asked.length === undefined ? `bytes from ${asked.offset}` : `bytes ${asked.offset} to ${asked.offset + Math.max(asked.length, 1) - 1}`
    if (range?.start === undefined || range.end === undefined) {
      throw new SkimmerError('INVALID_DATA', `${this.#what}: asked for ${what}, ${response.url.host} sends a part and does not say which (${written})`)
    }
    const wantedEnd = Math.min(asked.length === undefined ? Number.MAX_SAFE_INTEGER : asked.offset + Math.max(asked.length, 1) - 1, (range.total ?? Number.MAX_SAFE_INTEGER) - 1)
    const bytes = range.end - range.start + 1
    const announced = contentLength(response.headers)
    const fits = range.start === asked.offset && (range.end === wantedEnd || (asked.length === undefined && range.total === undefined))
    if (!fits || (announced !== undefined && announced !== bytes)) {
      throw new SkimmerError('CONFLICT', `${this.#what}: asked for ${what}, ${response.url.host} sends ${written} in ${announced ?? 'some'} bytes`)
    }
    return { bytes, total: range.total }
  }

  #checkVersion(wanted: Validators, got: Validators, headers: IncomingHttpHeaders, status: number, total: number | undefined): void {
    if (sameVersion(wanted, got)) return
    // A part that was sent because If-Range held may leave out the validators (RFC 9110 section 15.3.7); its total must still fit.
    const silent = headers.etag === undefined && headers['last-modified'] === undefined
    const lengthFits = wanted.length === undefined || total === undefined || wanted.length === total
    if (status === 206 && silent && wanted.kind !== 'weak' && lengthFits && wanted.encoding === got.encoding) return
    throw this.#conflict('it has another version now')
  }

  async #unchanged(response: HttpResponse, known: Validators, options: SourceOpenOptions): Promise<SourceAnswer> {
    await discard(response.body)
    const { etag, modified } = validatorsOf(response.headers, undefined)
    // A weak ETag may hold over a change that Last-Modified shows; only the bytes tell then.
    if ((known.kind === 'weak' && modified !== undefined && known.modified !== undefined && modified !== known.modified) || (known.kind === 'strong' && etag !== undefined && etag !== known.etag)) {
      return await this.open({ ...options, ifNot: undefined })
    }
    return { head: this.#head(response.headers, known, known.length, acceptsRanges(response.headers), options.ifNot), unchanged: true }
  }

  async #outside(response: HttpResponse, asked: Asked, options: SourceOpenOptions): Promise<SourceAnswer> {
    await discard(response.body)
    const { total } = parseContentRange(response.headers['content-range']) ?? {}
    // An empty resource has no part at all.
    if (total === 0 && asked.offset === 0) return await this.open({ ...options, offset: undefined, length: undefined })
    if (total === undefined || total !== asked.offset || asked.version === undefined) throw this.#tooFar(asked, total)
    // The end was reached before; there is nothing left of this version.
    const head = this.#head({}, { ...asked.version }, total, true, options.version)
    return { head, offset: asked.offset, bodyLength: 0, body: new HttpBody(response.body, { skip: 0, take: 0, expected: 0, what: this.#what, url: response.url }) }
  }

  #tooFar(asked: Asked, total: number | undefined): SkimmerError {
    if (asked.version !== undefined) return this.#conflict(`it has only ${total ?? 'fewer'} bytes now`)
    return new SkimmerError('INVALID_ARGUMENT', `${this.#what}: there is no byte ${asked.offset}${total === undefined ? '' : `, it has ${total}`}`)
  }

  #conflict(why: string): SkimmerError {
    return new SkimmerError('CONFLICT', `${this.#what}: what was read before cannot be gone on with, ${why}; ask again from the start`)
  }

  #head(headers: IncomingHttpHeaders, validators: Validators, length: number | undefined, ranges: boolean, version?: string): SourceHead {
    const contentType = headers['content-type']?.slice(0, 1024)
    return {
      version: version ?? formatVersion(validators),
      ...(length !== undefined && { length }),
      ranges,
      ...(contentType !== undefined && { contentType }),
      ...(validators.encoding !== undefined && { contentEncoding: validators.encoding }),
      ...(validators.etag !== undefined && { etag: validators.etag }),
      ...(headers['last-modified'] !== undefined && { lastModified: headers['last-modified'].slice(0, 1024) }),
      validated: validators.kind !== 'read',
    }
  }
}

const acceptsRanges = (headers: IncomingHttpHeaders): boolean => /\bbytes\b/i.test(headers['accept-ranges'] ?? '')

function contentLength(headers: IncomingHttpHeaders): number | undefined {
  const text = headers['content-length']
  return text !== undefined && /^[0-9]{1,16}$/.test(text) && Number.isSafeInteger(Number(text)) ? Number(text) : undefined
}
