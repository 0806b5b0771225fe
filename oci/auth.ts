// Authorization for registries: basic, and the distribution project's bearer tokens (docs/spec/auth/{token,oauth}.md), cached until they expire.
import { LRUCache } from 'lru-cache'
import { z } from 'zod'
import { parseChallenges } from './challenge.ts'
import type { Challenge } from './challenge.ts'
import type { Credentials, CredentialSource } from './credentials.ts'
import { DEFAULT_TOKEN_SECONDS, MAX_CACHED_TOKENS, MAX_TOKEN_BYTES, MAX_TOKEN_SECONDS, TOKEN_MARGIN_MS, TOKEN_TIMEOUT_MS } from './defaults.ts'
import type { RegistryClientOptions } from './defaults.ts'
import { SkimmerError } from './errors.ts'
import { firstIssue, parseJsonObject } from './manifest.ts'
import { answerError } from './registry-answer.ts'
import { isLoopback } from './registry-hosts.ts'
import { sendPersistently } from './retry.ts'
import { readBody, withSignal } from './transport.ts'
import type { HttpRequest, Transport } from './transport.ts'

const tokenSchema = z.object({
  token: z.string().nullish(),
  access_token: z.string().nullish(),
  expires_in: z.number().nullish(),
})

/** Who asks for what: a host, and what is to be done there. */
export interface AuthTarget {
  readonly registry: string
  readonly origin: string
  readonly repository?: string
  readonly actions: 'pull' | 'pull,push'
}

interface Ticket {
  readonly header: string | undefined
  readonly expires: number
}

export class Authenticator {
  readonly #transport: Transport
  readonly #credentials: CredentialSource
  readonly #options: RegistryClientOptions
  /** What each origin asked for last, so that later requests bring it along. */
  readonly #challenges = new LRUCache<string, Challenge>({ max: 1024 })
  readonly #tickets = new LRUCache<string, Ticket>({ max: MAX_CACHED_TOKENS })
  readonly #asking = new Map<string, Promise<Ticket>>()

  constructor(components: { transport: Transport; credentials: CredentialSource }, options: RegistryClientOptions = {}) {
    this.#transport = components.transport
    this.#credentials = components.credentials
    this.#options = options
  }

  /** The Authorization header to send unasked; undefined when the host has not asked for any, or nothing is known to give. */
  async header(target: AuthTarget, signal?: AbortSignal): Promise<string | undefined> {
    const challenge = this.#challenges.get(target.origin)
    // A bearer challenge is about one repository: for another one only its realm and service hold.
    return challenge === undefined ? undefined : (await this.#ticket(target, withoutScope(challenge), signal)).header
  }

  /**
   * After a 401, or a 403 that may mean expired credentials: another header to try, or undefined when there is none.
   * `refused` is the header that was not accepted. Throws UNAUTHORIZED when the token server refuses the credentials.
   */
  async renew(target: AuthTarget, wwwAuthenticate: string | readonly string[] | undefined, refused: string | undefined, signal?: AbortSignal): Promise<string | undefined> {
    const offered = parseChallenges(wwwAuthenticate)
    const challenge = offered.find(({ scheme, parameters }) => scheme === 'bearer' && parameters.realm !== undefined) ?? offered.find(({ scheme }) => scheme === 'basic') ?? this.#challenges.get(target.origin)
    if (challenge === undefined) return undefined
    this.#challenges.set(target.origin, challenge)
    const key = ticketKey(target)
    if (refused !== undefined && this.#tickets.get(key)?.header === refused) this.#tickets.delete(key)
    const { header } = await this.#ticket(target, challenge, signal)
    return header === refused ? undefined : header
  }

  async #ticket(target: AuthTarget, challenge: Challenge, signal: AbortSignal | undefined): Promise<Ticket> {
    const key = ticketKey(target)
    const known = this.#tickets.get(key)
    if (known !== undefined && known.expires > performance.now()) return known
    let asking = this.#asking.get(key)
    if (asking === undefined) {
      // Shared by all who wait for it, so no one caller's signal may end it.
      asking = this.#ask(target, challenge, AbortSignal.timeout(TOKEN_TIMEOUT_MS)).finally(() => this.#asking.delete(key))
      asking.then((ticket) => this.#tickets.set(key, ticket), () => {})
      this.#asking.set(key, asking)
    }
    return await withSignal(asking, `logging in to ${target.registry}`, signal)
  }

  async #ask(target: AuthTarget, challenge: Challenge, signal: AbortSignal): Promise<Ticket> {
    const credentials = await this.#credentials.get(target.registry, { repository: target.repository, signal })
    if (credentials !== undefined && 'registryToken' in credentials) return lasting(`Bearer ${credentials.registryToken}`)
    if (challenge.scheme === 'basic') return lasting(credentials !== undefined && 'username' in credentials ? basic(credentials) : undefined)
    return await this.#token(target, challenge, credentials, signal)
  }

  async #token(target: AuthTarget, challenge: Challenge, credentials: Credentials | undefined, signal: AbortSignal): Promise<Ticket> {
    const realm = tokenRealm(challenge.parameters.realm, target)
    const { service } = challenge.parameters
    // The registry knows best what it needs (a mirror may map names); the token goes to that registry only.
    const scope = challenge.parameters.scope || (target.repository === undefined ? '' : `repository:${target.repository}:${target.actions}`)
    const what = `asking ${realm.host} for a token for ${target.registry}${target.repository === undefined ? '' : `/${target.repository}`}`
    let request: HttpRequest
    if (credentials !== undefined && 'identityToken' in credentials) {
      const form = new URLSearchParams({ grant_type: 'refresh_token', client_id: 'skimmer', refresh_token: credentials.identityToken, ...(service ? { service } : {}), ...(scope ? { scope } : {}) })
      request = { method: 'POST', url: realm, what, signal, headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: Buffer.from(form.toString()) }
    } else {
      if (service) realm.searchParams.set('service', service)
      for (const part of scope.split(' ').filter(Boolean)) realm.searchParams.append('scope', part)
      const named = credentials !== undefined && 'username' in credentials ? credentials : undefined
      if (named !== undefined) realm.searchParams.set('account', named.username)
      request = { method: 'GET', url: realm, what, signal, ...(named === undefined ? {} : { authorization: basic(named) }) }
    }
    const response = await sendPersistently(this.#transport, request, this.#options)
    if (response.status !== 200) throw await answerError(response, { what, registry: target.registry, secrets: secretsOf(credentials), anonymous: credentials === undefined })
    const answer = tokenSchema.safeParse(parseJsonObject(await readBody(response, MAX_TOKEN_BYTES, what, signal), `the token of ${realm.host}`, MAX_TOKEN_BYTES))
    if (!answer.success) throw new SkimmerError('INVALID_DATA', `${what}: the answer is not valid at ${firstIssue(answer.error)}`)
    const token = answer.data.token || answer.data.access_token
    if (!token || !/^[\x21-\x7e]+$/.test(token)) throw new SkimmerError('INVALID_DATA', `${what}: the answer has no usable token`)
    const seconds = Math.min(MAX_TOKEN_SECONDS, Math.max(1, answer.data.expires_in ?? DEFAULT_TOKEN_SECONDS))
    // Counted from now and not from issued_at, which is the server's clock.
    return { header: `Bearer ${token}`, expires: performance.now() + Math.max(seconds * 500, seconds * 1000 - TOKEN_MARGIN_MS) }
  }
}

const lasting = (header: string | undefined): Ticket => ({ header, expires: header === undefined ? 0 : Number.POSITIVE_INFINITY })

const ticketKey = (target: AuthTarget): string => `${target.origin} ${target.repository ?? ''} ${target.actions}`

const basic = (credentials: { username: string; password: string }): string => `Basic ${Buffer.from(`${credentials.username}:${credentials.password}`).toString('base64')}`

function withoutScope(challenge: Challenge): Challenge {
  const { scope: _scope, ...parameters } = challenge.parameters
  return { scheme: challenge.scheme, parameters }
}

function secretsOf(credentials: Credentials | undefined): string[] {
  if (credentials === undefined) return []
  return 'username' in credentials ? [credentials.password, basic(credentials).slice(6)] : Object.values(credentials)
}

/** Where tokens come from. Credentials go there, so it must be at least as safe a place as the registry itself. */
function tokenRealm(realm: string, target: AuthTarget): URL {
  const url = URL.parse(realm)
  if (url === null || (url.protocol !== 'https:' && url.protocol !== 'http:') || url.username !== '' || url.password !== '') {
    throw new SkimmerError('INVALID_DATA', `${target.registry} names a token server that is no plain http(s) address`)
  }
  if (url.protocol === 'http:' && target.origin.startsWith('https:') && !isLoopback(url.host)) {
    throw new SkimmerError('INVALID_DATA', `${target.registry} is reached over HTTPS but names a token server over plain HTTP (${url.host}); credentials are not sent there`)
  }
  return url
}
