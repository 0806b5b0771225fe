// Signed URLs of s3:// objects: AWS's own signer and credential chain, for any server that speaks Signature Version 4.
import { createHash, createHmac } from 'node:crypto'
import type { Hash, Hmac } from 'node:crypto'
import { SkimmerError } from '../oci/errors.ts'

/** What is left out comes from the environment (AWS_…), the shared config files or the machine's role, as for every AWS tool. */
export interface S3Settings {
  /** `https://host[:port]` of another server than Amazon's; buckets are the first part of its paths then. */
  readonly endpoint?: string
  readonly region?: string
  readonly accessKeyId?: string
  readonly secretAccessKey?: string
  readonly sessionToken?: string
}

export interface SignedUrl {
  readonly url: string
  /** Query parameters that only prove who asks; give them to `taskKey`. */
  readonly filteredQueryParams: readonly string[]
}

interface S3Credentials {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string
}

const SIGNATURE_PARAMETERS = ['Algorithm', 'Content-Sha256', 'Credential', 'Date', 'Expires', 'Security-Token', 'Signature', 'SignedHeaders'].map((name) => `X-Amz-${name}`)
/** Long enough for a large download with breaks; the most that S3 takes is a week. */
const DEFAULT_EXPIRES_SECONDS = 12 * 3600

export class S3Signer {
  #chain: (() => Promise<S3Credentials>) | undefined

  /** A GET of the object (or, with a query, of its bucket), signed for `expiresSeconds`; as it is where no credentials are found. */
  async sign(url: URL, settings: S3Settings = {}, options: { query?: Readonly<Record<string, string>>; expiresSeconds?: number } = {}): Promise<SignedUrl> {
    const target = objectUrl(url, settings, options.query !== undefined)
    const credentials = await this.#credentials(settings)
    const query: Record<string, string> = { ...options.query }
    if (credentials !== undefined) {
      const { SignatureV4 } = await import('@smithy/signature-v4')
      const signer = new SignatureV4({ service: 's3', region: regionOf(settings), credentials, sha256: Sha256, uriEscapePath: false, applyChecksum: false })
      const signed = await signer.presign(
        {
          method: 'GET', protocol: target.protocol, hostname: target.hostname, path: target.pathname, query,
          ...(target.port !== '' && { port: Number(target.port) }),
          headers: { host: target.host, 'X-Amz-Content-Sha256': 'UNSIGNED-PAYLOAD' },
        },
        { expiresIn: options.expiresSeconds ?? DEFAULT_EXPIRES_SECONDS },
      )
      Object.assign(query, signed.query)
    }
    target.search = Object.entries(query).map(([name, value]) => `${uriEncode(name)}=${uriEncode(value)}`).join('&')
    return { url: target.href, filteredQueryParams: SIGNATURE_PARAMETERS }
  }

  async #credentials(settings: S3Settings): Promise<S3Credentials | undefined> {
    const { accessKeyId, secretAccessKey, sessionToken } = settings
    if (accessKeyId !== undefined && secretAccessKey !== undefined) return { accessKeyId, secretAccessKey, ...(sessionToken !== undefined && { sessionToken }) }
    this.#chain ??= (await import('@aws-sdk/credential-provider-node')).defaultProvider()
    try {
      return await this.#chain()
    } catch (error) {
      // Nothing is configured: public buckets are read without.
      if ((error as Error).name === 'CredentialsProviderError') return undefined
      throw new SkimmerError('UNAUTHORIZED', `the AWS credentials of this machine cannot be had: ${(error as Error).name}`, { cause: error })
    }
  }
}

const regionOf = (settings: S3Settings): string => settings.region ?? process.env.AWS_REGION ?? process.env.AWS_DEFAULT_REGION ?? 'us-east-1'

/** RFC 3986, as Signature Version 4 wants it. */
export const uriEncode = (text: string): string => encodeURIComponent(text).replaceAll(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`)

export function keyOf(url: URL): string {
  try {
    return decodeURIComponent(url.pathname.slice(1))
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', 'the key of an s3:// URL has a broken percent-encoding; write % as %25', { cause })
  }
}

/** Where the object (or its bucket) is over HTTP. Throws INVALID_ARGUMENT. */
export function objectUrl(url: URL, settings: S3Settings, wholeBucket: boolean): URL {
  const bucket = url.hostname
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/i.test(bucket) || url.port !== '') throw new SkimmerError('INVALID_ARGUMENT', 'an s3:// URL names a bucket and a key: s3://bucket/path/of/key')
  const key = keyOf(url)
  if (key === '' && !wholeBucket) throw new SkimmerError('INVALID_ARGUMENT', `s3://${bucket} names a bucket, not what to read in it; write s3://${bucket}/key, or download it recursively`)
  const path = wholeBucket ? '' : key.split('/').map(uriEncode).join('/')
  const endpoint = settings.endpoint ?? process.env.AWS_ENDPOINT_URL_S3 ?? process.env.AWS_ENDPOINT_URL
  if (endpoint !== undefined) {
    const base = URL.parse(endpoint)
    if (base === null || !/^https?:$/.test(base.protocol)) throw new SkimmerError('INVALID_ARGUMENT', 'the S3 endpoint is no http(s) URL')
    return new URL(`${base.origin}${base.pathname.replace(/\/$/, '')}/${bucket}/${path}`)
  }
  const region = regionOf(settings)
  const host = `s3.${region}.amazonaws.com${region.startsWith('cn-') ? '.cn' : ''}`
  // Amazon's certificate covers one name before its own.
  return bucket.includes('.') || bucket !== bucket.toLowerCase() ? new URL(`https://${host}/${bucket}/${path}`) : new URL(`https://${bucket}.${host}/${path}`)
}

class Sha256 {
  readonly #secret: Uint8Array | string | undefined
  #running: Hash | Hmac

  constructor(secret?: string | ArrayBuffer | ArrayBufferView) {
    this.#secret = secret === undefined ? undefined : bytesOf(secret)
    this.#running = this.#begin()
  }

  #begin(): Hash | Hmac {
    return this.#secret === undefined ? createHash('sha256') : createHmac('sha256', this.#secret)
  }

  update(data: string | ArrayBuffer | ArrayBufferView): void {
    this.#running.update(bytesOf(data))
  }

  digest(): Promise<Uint8Array> {
    return Promise.resolve(this.#running.digest())
  }

  reset(): void {
    this.#running = this.#begin()
  }
}

const bytesOf = (data: string | ArrayBuffer | ArrayBufferView): Uint8Array =>
  typeof data === 'string' ? Buffer.from(data) : ArrayBuffer.isView(data) ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : new Uint8Array(data)
