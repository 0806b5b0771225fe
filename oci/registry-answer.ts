// What a registry's refusal means: its status and error body as one of our codes, with what the user can do.
import { MAX_ERROR_BODY_BYTES } from './defaults.ts'
import { SkimmerError } from './errors.ts'
import type { ErrorCode } from './errors.ts'
import { retryAfterMs } from './retry.ts'
import { discard, readBody } from './transport.ts'
import type { HttpResponse } from './transport.ts'

export interface AnswerContext {
  readonly what: string
  readonly registry: string
  /** Blanked out wherever the registry repeats them. */
  readonly secrets: readonly string[]
  readonly anonymous: boolean
}

function codeOf(status: number): ErrorCode {
  if (status === 401 || status === 403 || status === 407) return 'UNAUTHORIZED'
  if (status === 404 || status === 410) return 'NOT_FOUND'
  if (status === 405 || status === 501) return 'UNSUPPORTED'
  if (status === 413) return 'LIMIT_EXCEEDED'
  if (status === 408 || status === 425 || status === 429 || status >= 500) return 'UNAVAILABLE'
  return status >= 400 ? 'INVALID_ARGUMENT' : 'INVALID_DATA'
}

function advice(status: number, { registry, anonymous }: AnswerContext, waitMs: number | undefined): string {
  if (status === 401 || status === 403) {
    const refused = anonymous ? 'no credentials were found' : 'the credentials were refused or do not cover this'
    return `; ${refused}: log in with \`docker login ${registry}\` (or set REGISTRY_AUTH_FILE), and check that the repository exists`
  }
  if (status === 404) return '; check the name, the tag or digest, and whether the repository is private'
  if (status === 429) return `; it limits requests${waitMs === undefined ? '' : ` and asks to wait ${Math.ceil(waitMs / 1000)} s`}: log in, or put a mirror in front of it`
  if (status >= 500) return '; the registry is in trouble, try again later or configure a mirror'
  return ''
}

/** The error list of the distribution spec, shortened to what a person can use. Hostile text: bounded, one line, no secrets. */
function explanation(bytes: Buffer, secrets: readonly string[]): string {
  let text = ''
  try {
    const document = JSON.parse(bytes.toString('utf8')) as { errors?: { code?: unknown; message?: unknown }[]; details?: unknown; error_description?: unknown }
    const first = document.errors?.[0]
    text = [first?.code, first?.message, document.details, document.error_description].filter((part) => typeof part === 'string' && part !== '').join(': ')
  } catch {
    return ''
  }
  for (const secret of secrets) if (secret !== '') text = text.replaceAll(secret, '[redacted]')
  text = text.replaceAll(/[^\x20-\x7e]+/g, ' ').slice(0, 300)
  return text === '' ? '' : ` (${text})`
}

/** Reads the refusal's body, frees the connection, and says it all in one error. */
export async function answerError(response: HttpResponse, context: AnswerContext): Promise<SkimmerError> {
  const { status } = response
  const waitMs = retryAfterMs(response.headers['retry-after'])
  const body = await readBody(response, MAX_ERROR_BODY_BYTES, context.what).catch(async () => {
    await discard(response.body)
    return Buffer.alloc(0)
  })
  return new SkimmerError(codeOf(status), `${context.what}: ${response.url.host} answered ${status}${explanation(body, context.secrets)}${advice(status, context, waitMs)}`, {
    details: { status, registry: context.registry, host: response.url.host, ...(waitMs === undefined ? {} : { retryAfterSeconds: Math.ceil(waitMs / 1000) }) },
  })
}
