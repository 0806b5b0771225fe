// The supernode's HTTP API as commands call it.
import { SkimmerError, type ErrorCode } from '../oci/errors.ts'
import { secretIn } from './config/supernode-settings.ts'

const ANSWER_MS = 20_000

export class SupernodeApi {
  readonly #url: string
  readonly #headers: Record<string, string>

  /** `tokenFile` holds the token of its API. INVALID_ARGUMENT for what is no URL. */
  constructor(url: string, tokenFile: string | undefined) {
    if (!URL.canParse(url) || !/^https?:\/\//.test(url)) throw new SkimmerError('INVALID_ARGUMENT', `--supernode: ${JSON.stringify(url)} is not a URL, for instance http://10.0.0.1:4981`)
    const token = secretIn(tokenFile, '--token-file')
    this.#url = url
    this.#headers = { 'content-type': 'application/json', ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) }
  }

  /** The JSON it answers. UNAVAILABLE when it does not answer, else what it says went wrong. */
  async call<Answer>(method: 'GET' | 'POST', path: string, body?: unknown): Promise<Answer> {
    const { request } = await import('undici')
    let answer
    try {
      answer = await request(new URL(path, this.#url), { method, headers: this.#headers, body: body === undefined ? undefined : JSON.stringify(body), headersTimeout: ANSWER_MS, bodyTimeout: ANSWER_MS })
    } catch (cause) {
      throw new SkimmerError('UNAVAILABLE', `the supernode at ${this.#url} does not answer: ${(cause as Error).message}`, { cause })
    }
    const value = (await answer.body.json()) as Answer & { code?: ErrorCode; message?: string }
    if (answer.statusCode >= 300) throw new SkimmerError(value.code ?? 'UNAVAILABLE', value.message ?? `the supernode answered ${answer.statusCode}`)
    return value
  }
}
