// s3://bucket/key: an HTTP source behind signed URLs, and the keys under a prefix.
import { SkimmerError } from '../oci/errors.ts'
import { relativeName } from './index-page.ts'
import type { ListedEntry } from './index-page.ts'
import { keyOf, objectUrl, uriEncode } from './s3-signer.ts'
import type { S3Settings, S3Signer } from './s3-signer.ts'
import type { Source, SourceAnswer, SourceOpenOptions } from './source.ts'

const PAGE_BYTES = 8 * 1024 * 1024

/** Signs each request anew, so that it can be read for as long as the credentials hold. */
export class S3Source implements Source {
  readonly url: URL
  readonly #sign: (query?: Readonly<Record<string, string>>) => Promise<URL>
  readonly #openHttp: (target: () => Promise<URL>) => Source
  readonly #object: Source

  /** `openHttp` gives an HTTP source that asks for its URL before each request. Throws INVALID_ARGUMENT. */
  constructor(components: { url: URL; signer: S3Signer; settings: S3Settings | undefined; openHttp: (shown: URL, target: () => Promise<URL>) => Source }) {
    const { url, signer, settings, openHttp } = components
    this.url = new URL(url.href)
    this.url.search = this.url.username = this.url.password = ''
    objectUrl(url, settings ?? {}, true)
    this.#sign = async (query) => new URL((await signer.sign(url, settings, { query })).url)
    this.#openHttp = (target) => openHttp(this.url, target)
    this.#object = this.#openHttp(() => this.#sign())
  }

  async close(): Promise<void> {
    await this.#object.close()
  }

  async open(options: SourceOpenOptions = {}): Promise<SourceAnswer> {
    return await this.#explained(this.#object.open(options))
  }

  async #explained(answer: Promise<SourceAnswer>): Promise<SourceAnswer> {
    try {
      return await answer
    } catch (error) {
      if (!(error instanceof SkimmerError) || ![301, 400].includes(error.details.status as number)) throw error
      throw new SkimmerError('INVALID_ARGUMENT', `reading ${this.url.href}: the bucket is elsewhere; name its region (AWS_REGION) and endpoint`, { cause: error, details: error.details })
    }
  }

  /** Keys and common prefixes one level below (ListObjectsV2, with `/` as the delimiter). */
  async list(options: { maxEntries: number; signal?: AbortSignal }): Promise<ListedEntry[]> {
    const prefix = keyOf(this.url) === '' ? '' : keyOf(this.url).replace(/\/?$/, '/')
    const entries: ListedEntry[] = []
    let token: string | undefined
    do {
      const page = await this.#page({ 'list-type': '2', delimiter: '/', 'encoding-type': 'url', prefix, ...(token !== undefined && { 'continuation-token': token }) }, options.signal)
      const add = (key: string, size?: number): void => {
        const name = key.startsWith(prefix) ? relativeName(key.slice(prefix.length).split('/').map(uriEncode).join('/')) : undefined
        // The prefix itself as an empty object is how some tools mark a directory.
        if (name === undefined) return
        if (entries.length === options.maxEntries) throw new SkimmerError('LIMIT_EXCEEDED', `${this.url.href} has more than the ${options.maxEntries} entries that are allowed`)
        entries.push({ url: `s3://${this.url.host}/${key.split('/').map(uriEncode).join('/')}`, name, directory: name.endsWith('/'), ...(size !== undefined && { size }) })
      }
      for (const [, contents] of page.matchAll(/<Contents>([\s\S]*?)<\/Contents>/g)) add(decodeKey(element(contents, 'Key')), Number(element(contents, 'Size')))
      for (const [, common] of page.matchAll(/<CommonPrefixes>([\s\S]*?)<\/CommonPrefixes>/g)) add(decodeKey(element(common, 'Prefix')))
      const next = element(page, 'IsTruncated') === 'true' ? xmlText(element(page, 'NextContinuationToken')) : undefined
      token = next === token ? undefined : next
    } while (token !== undefined && token !== '')
    return entries
  }

  async #page(query: Readonly<Record<string, string>>, signal: AbortSignal | undefined): Promise<string> {
    const source = this.#openHttp(() => this.#sign(query))
    const chunks: Buffer[] = []
    let length = 0
    try {
      const { body } = await this.#explained(source.open({ signal }))
      for await (const chunk of body ?? []) {
        length += chunk.length
        if (length > PAGE_BYTES) throw new SkimmerError('LIMIT_EXCEEDED', `the list of ${this.url.href} has pages of more than ${PAGE_BYTES} bytes`)
        chunks.push(chunk)
      }
    } finally {
      await source.close()
    }
    const text = Buffer.concat(chunks, length).toString('utf8')
    if (!text.includes('<ListBucketResult')) throw new SkimmerError('INVALID_DATA', `the server of ${this.url.href} does not list objects as S3 does`)
    return text
  }
}

/** The text of the first such element, without markup of its own: S3's lists are flat. */
const element = (xml: string, name: string): string => new RegExp(`<${name}>([^<]{0,8192})</${name}>`).exec(xml)?.[1] ?? ''

const xmlText = (text: string): string =>
  text.replaceAll(/&(?:(amp|lt|gt|quot|apos)|#x([0-9a-f]{1,6})|#([0-9]{1,7}));/gi, (whole, name?: string, hex?: string, decimal?: string) => {
    if (name !== undefined) return { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" }[name.toLowerCase()] ?? whole
    const code = hex === undefined ? Number(decimal) : Number.parseInt(hex, 16)
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole
  })

/** Keys come as in a form (`encoding-type=url`): `+` is a space. */
function decodeKey(text: string): string {
  const plain = xmlText(text).replaceAll('+', ' ')
  try {
    return decodeURIComponent(plain)
  } catch {
    return plain
  }
}
