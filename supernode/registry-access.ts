// Registry clients by whose credentials they use: the supernode's own, or those that a node handed over for one image.
import { createHmac, randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import type { Registry as Metrics } from 'prom-client'
import { anonymous } from '../oci/credentials.ts'
import type { Credentials, CredentialSource } from '../oci/credentials.ts'
import type { HostsConfig } from '../oci/registry-hosts.ts'
import { RegistryClient } from '../oci/registry-client.ts'

/** Credentials as the control protocol carries them. */
export type HandedCredentials = { readonly username: string; readonly secret: string } | { readonly token: string }

/** A client, and the name under which it may be remembered what the registry lets it see. */
export interface RegistryAccess {
  readonly client: RegistryClient
  /** `own`, or a keyed hash of the credentials: nothing that is written down can be turned back into them. */
  readonly who: string
}

/** Clients kept for credentials that nodes handed over: each holds a connection pool. */
const MAX_HANDED_CLIENTS = 32

export class RegistryGate {
  readonly #own: RegistryAccess
  readonly #handed: LRUCache<string, RegistryAccess>
  readonly #components: { hosts?: HostsConfig; logger: Logger; metrics?: Metrics }
  readonly #secret: Buffer
  /** Clients that fell out of the cache: closed with the gate, because downloads may still run on them. */
  readonly #retired = new Set<RegistryClient>()

  /** `secret` keys the hashes of credentials, so that remembered answers survive a restart; random when left out. */
  constructor(components: { credentials?: CredentialSource; hosts?: HostsConfig; logger: Logger; metrics?: Metrics }, options: { secret?: Buffer } = {}) {
    this.#components = { hosts: components.hosts, logger: components.logger, metrics: components.metrics }
    this.#secret = options.secret ?? randomBytes(32)
    this.#own = { client: new RegistryClient({ ...this.#components, credentials: components.credentials ?? anonymous }), who: 'own' }
    this.#handed = new LRUCache({ max: MAX_HANDED_CLIENTS, dispose: access => { this.#retired.add(access.client) } })
  }

  get own(): RegistryAccess {
    return this.#own
  }

  /** Whom to ask as, best first: the node's credentials for this registry alone, then the supernode's own. */
  accesses(registry: string, handed: HandedCredentials | undefined): RegistryAccess[] {
    return handed === undefined ? [this.#own] : [this.#accessFor(registry, handed), this.#own]
  }

  async close(): Promise<void> {
    const clients = [this.#own.client, ...[...this.#handed.values()].map(access => access.client), ...this.#retired]
    await Promise.all(clients.map(client => client.close()))
  }

  #accessFor(registry: string, handed: HandedCredentials): RegistryAccess {
    const who = createHmac('sha256', this.#secret).update(JSON.stringify([registry, handed])).digest('hex')
    let access = this.#handed.get(who)
    if (access === undefined) {
      const credentials: Credentials = 'token' in handed ? { registryToken: handed.token } : { username: handed.username, password: handed.secret }
      // Only for the registry they were meant for: an image must not be able to send them elsewhere.
      const source: CredentialSource = { get: async asked => (asked === registry ? credentials : undefined) }
      access = { client: new RegistryClient({ ...this.#components, credentials: source }), who }
      this.#handed.set(who, access)
    }
    return access
  }
}
