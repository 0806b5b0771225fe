// Grants: tokens by which a supernode lets a peer fetch resources from others; signing them, and checking them with a cache.
import { createHash, createPrivateKey, createPublicKey, sign, verify } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { z } from 'zod'
import { SkimmerError } from '../oci/errors.ts'
import { resourceIdSchema } from './control-fields.ts'

/** `peer` may fetch `resources` until `expires` (milliseconds since 1970). */
export interface Grant { readonly peer: string; readonly resources: readonly string[]; readonly expires: number }

const grantSchema = z.object({ peer: z.string().max(200), resources: z.array(resourceIdSchema).max(4096), expires: z.number().int() })
// DER of an ed25519 private key (PKCS #8, RFC 8410) up to its 32-byte seed.
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex')

/**
 * Signs grants with the supernode's ed25519 seed (the first 32 bytes of its libp2p identity's raw key).
 * A token is `base64url(JSON).base64url(signature)`: the signed bytes travel as they are, so no canonical form is needed.
 */
export class GrantSigner {
  readonly #key: KeyObject
  /** base64url of the 32-byte public key: what `hello` answers. */
  readonly publicKey: string

  constructor(seed: Uint8Array) {
    this.#key = createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, seed.subarray(0, 32)]), format: 'der', type: 'pkcs8' })
    this.publicKey = createPublicKey(this.#key).export({ format: 'jwk' }).x!
  }

  sign(grant: Grant): string {
    const bytes = Buffer.from(JSON.stringify({ peer: grant.peer, resources: grant.resources, expires: grant.expires }))
    return `${bytes.toString('base64url')}.${sign(null, bytes, this.#key).toString('base64url')}`
  }
}

/** Checks grants against the supernodes it knows. Signatures are checked once a token. */
export class GrantVerifier {
  readonly #keys = new Map<string, KeyObject>()
  readonly #checked = new LRUCache<string, Grant>({ max: 4096 })
  readonly #clock: () => number

  constructor(options: { clock?: () => number } = {}) {
    this.#clock = options.clock ?? Date.now
  }

  /** Trust a supernode's key (base64url). INVALID_DATA when it is not an ed25519 public key. */
  trust(publicKey: string): void {
    if (this.#keys.has(publicKey)) return
    try {
      this.#keys.set(publicKey, createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: publicKey }, format: 'jwk' }))
    } catch (cause) {
      throw new SkimmerError('INVALID_DATA', 'grantKey: not an ed25519 public key', { cause })
    }
  }

  get trusted(): string[] {
    return [...this.#keys.keys()]
  }

  /** The grant in `token` if a known supernode signed it for `peer` and it has not expired; FORBIDDEN otherwise. */
  check(token: string, peer: string): Grant {
    const name = createHash('sha256').update(token).digest('base64')
    let grant = this.#checked.get(name)
    if (grant === undefined) {
      grant = this.#verify(token)
      this.#checked.set(name, grant)
    }
    if (grant.peer !== peer) throw new SkimmerError('FORBIDDEN', 'the grant names another peer')
    if (grant.expires <= this.#clock()) throw new SkimmerError('FORBIDDEN', 'the grant has expired; renew it at a supernode')
    return grant
  }

  #verify(token: string): Grant {
    const [payload, signature, rest] = token.split('.')
    if (payload === undefined || signature === undefined || rest !== undefined) throw new SkimmerError('INVALID_DATA', 'the grant is malformed')
    const bytes = Buffer.from(payload, 'base64url')
    const signatureBytes = Buffer.from(signature, 'base64url')
    let known = false
    for (const key of this.#keys.values()) known ||= verify(null, bytes, key, signatureBytes)
    if (!known) throw new SkimmerError('FORBIDDEN', 'no supernode known here has signed the grant')
    return parseGrant(bytes)
  }
}

function parseGrant(bytes: Buffer): Grant {
  try {
    return grantSchema.parse(JSON.parse(bytes.toString('utf8')))
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', 'the grant is malformed', { cause })
  }
}

/** The grants this node holds for itself, by resource. */
export class GrantBook {
  readonly #tokens = new Map<string, { token: string; expires: number }>()

  /** Keep a token that a supernode gave. Its signature is for others to check. */
  add(token: string): Grant {
    const grant = parseGrant(Buffer.from(token.split('.')[0] ?? '', 'base64url'))
    for (const resource of grant.resources) {
      const kept = this.#tokens.get(resource)
      if (kept === undefined || kept.expires < grant.expires) this.#tokens.set(resource, { token, expires: grant.expires })
    }
    return grant
  }

  tokenFor(resource: string): string | undefined {
    return this.#tokens.get(resource)?.token
  }

  /** Resources whose grants end before `time`, milliseconds since 1970. */
  expiringBefore(time: number): string[] {
    return [...this.#tokens].filter(([, { expires }]) => expires < time).map(([resource]) => resource)
  }

  forget(resource: string): void {
    this.#tokens.delete(resource)
  }

  /** All tokens, each once: for keeping them over a restart. */
  tokens(): string[] {
    return [...new Set([...this.#tokens.values()].map(({ token }) => token))]
  }
}
