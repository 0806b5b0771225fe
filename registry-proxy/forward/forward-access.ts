// Who may use the forward proxy: by address, and by user and password where users are configured.
import { createHash, timingSafeEqual } from 'node:crypto'
import { BlockList, isIP } from 'node:net'
import { SkimmerError } from '../../oci/errors.ts'
import { addNetwork } from './forward-config.ts'

const LOOPBACK = ['127.0.0.0/8', '::1']
const digest = (text: string): Buffer => createHash('sha256').update(text).digest()

export class ForwardAccess {
  readonly #networks: BlockList | undefined
  readonly #users: readonly Buffer[]

  /** `users`: `name:password` each. */
  constructor(options: { networks?: readonly string[]; users?: readonly string[] }) {
    this.#users = (options.users ?? []).map(digest)
    const networks = options.networks ?? (this.#users.length > 0 ? undefined : LOOPBACK)
    if (networks === undefined) return
    this.#networks = new BlockList()
    for (const network of networks) addNetwork(this.#networks, network)
  }

  get asksForUser(): boolean {
    return this.#users.length > 0
  }

  fromHere(address: string | undefined): boolean {
    if (this.#networks === undefined) return true
    const plain = (address ?? '').replace(/^::ffff:(?=\d+\.)/i, '').replace(/%.*$/, '')
    const family = isIP(plain)
    return family !== 0 && this.#networks.check(plain, family === 4 ? 'ipv4' : 'ipv6')
  }

  /** By the Proxy-Authorization header. */
  isUser(header: string | undefined): boolean {
    if (this.#users.length === 0) return true
    const given = /^basic +([A-Za-z0-9+/=_-]{1,8192})$/i.exec(header?.trim() ?? '')?.[1]
    const shown = digest(given === undefined ? '' : Buffer.from(given, 'base64').toString('utf8'))
    // All of them are compared, always.
    return given !== undefined && this.#users.filter((user) => timingSafeEqual(user, shown)).length > 0
  }
}

/** Lines `name:password`; empty ones and those that begin with `#` do not count. INVALID_ARGUMENT, never with a line's text in it. */
export function readUsers(text: string, file: string): string[] {
  const users: string[] = []
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    const colon = line.indexOf(':')
    if (colon <= 0 || colon === line.length - 1) throw new SkimmerError('INVALID_ARGUMENT', `${file}: line ${index + 1} is not NAME:PASSWORD`)
    if (/^\{SHA\}|^\$(?:apr1|2[aby]|5|6)\$/.test(line.slice(colon + 1))) throw new SkimmerError('INVALID_ARGUMENT', `${file}: line ${index + 1} holds a hash as htpasswd writes it; write the password itself and keep the file readable for its owner alone`)
    users.push(line)
  }
  if (users.length === 0) throw new SkimmerError('INVALID_ARGUMENT', `${file} names no user; write lines NAME:PASSWORD`)
  return users
}
