// The libp2p host: TCP, noise, yamux with windows large enough to keep a fast link busy, and a persisted identity.
import { randomBytes } from 'node:crypto'
import { mkdir, open, readFile, rename } from 'node:fs/promises'
import { dirname } from 'node:path'
import { generateKeyPair, privateKeyFromRaw } from '@libp2p/crypto/keys'
import type { Libp2p, PrivateKey } from '@libp2p/interface'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import type { Multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { SkimmerError } from '../oci/errors.ts'
import { lightYamux } from './muxer.ts'
import { lightNoise } from './noise.ts'
import { quietLog } from './quiet-log.ts'

export interface HostOptions {
  /** Multiaddrs to listen on, for instance `/ip4/0.0.0.0/tcp/4001`. Empty: outgoing connections only. */
  listen: string[]
  /** Addresses to tell others instead of the ones listened on. */
  announce?: string[]
  /** Where the ed25519 identity is kept (mode 0600); made when missing. Without it the identity lasts for the process. */
  identityFile?: string
  /** Connections at most. Default 512. */
  maxConnections?: number
}

/**
 * Receive window of a stream, bytes: a full gigabit link with 60 ms of latency. Yamux starts at 256 KiB, as its specification
 * demands, and doubles towards this while the reader keeps up.
 */
export const STREAM_WINDOW = 8 * 1024 * 1024
const IDENTITY_LENGTH = 64 // libp2p's raw form of an ed25519 private key: seed and public key

export async function createHost(options: HostOptions): Promise<Libp2p> {
  const privateKey = options.identityFile === undefined ? await generateKeyPair('Ed25519') : await loadIdentity(options.identityFile)
  return await createLibp2p({
    privateKey,
    logger: quietLog(),
    addresses: { listen: options.listen, announce: options.announce ?? [] },
    transports: [tcp({ inboundSocketInactivityTimeout: 120_000, outboundSocketInactivityTimeout: 120_000, dialOpts: { noDelay: true }, listenOpts: { noDelay: true } as never })],
    connectionEncrypters: [lightNoise()],
    streamMuxers: [lightYamux({
      maxInboundStreams: 512,
      maxOutboundStreams: 512,
      streamOptions: {
        maxStreamWindowSize: STREAM_WINDOW,
        // A paused reader keeps at most one window: what the remote was allowed to send.
        maxReadBufferLength: STREAM_WINDOW + 1024 * 1024,
        maxWriteBufferLength: 64 * 1024 * 1024,
        // Streams are long-lived and idle between starts; yamux pings keep the connection honest.
        inactivityTimeout: 2 ** 31 - 1,
      },
    })],
    services: { ping: ping() },
    connectionManager: {
      maxConnections: options.maxConnections ?? 512,
      // A datacenter starts its nodes at once, perhaps behind one address.
      inboundConnectionThreshold: 100,
      maxIncomingPendingConnections: 100,
      maxParallelDials: 50,
      dialTimeout: 5_000,
      reconnectRetries: 0, // Peer reconnects on its own, with its own backoff
    },
    connectionMonitor: { enabled: false }, // yamux pings already
  })
}

/** The identity in `file`, or a new one written there in one step. INVALID_DATA when the file holds anything else. */
export async function loadIdentity(file: string): Promise<PrivateKey> {
  let bytes: Buffer
  try {
    bytes = await readFile(file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    const key = await generateKeyPair('Ed25519')
    await writePrivate(file, key.raw)
    return key
  }
  if (bytes.length !== IDENTITY_LENGTH) throw new SkimmerError('INVALID_DATA', `${file} is not an identity: ${bytes.length} bytes instead of ${IDENTITY_LENGTH}; delete it to get a new identity`)
  return privateKeyFromRaw(bytes)
}

/** Replace a file in one step, readable by its owner alone. */
export async function writePrivate(file: string, bytes: Uint8Array): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 })
  const temporary = `${file}.${randomBytes(6).toString('hex')}`
  const handle = await open(temporary, 'wx', 0o600)
  try {
    await handle.writeFile(bytes)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(temporary, file)
}

/** A multiaddr from configuration: a multiaddr, `host:port` or `tcp://host:port`, each optionally with `/p2p/<peer id>`. */
export function parseAddress(text: string): Multiaddr {
  try {
    if (text.startsWith('/')) return multiaddr(text)
    const match = /^(?:tcp:\/\/)?(\[[0-9a-f:.]+\]|[^/:[\]]+):(\d{1,5})((?:\/p2p)?\/\w+)?\/?$/i.exec(text)
    if (match === null) throw new Error('neither a multiaddr nor host:port')
    const [, host, port, id] = match
    const kind = host.startsWith('[') ? 'ip6' : /^[\d.]+$/.test(host) ? 'ip4' : 'dns'
    const suffix = id === undefined ? '' : id.startsWith('/p2p') ? id : `/p2p${id}`
    return multiaddr(`/${kind}/${host.replace(/[[\]]/g, '')}/tcp/${port}${suffix}`)
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `address ${JSON.stringify(text)}: write /ip4/10.0.0.1/tcp/4001/p2p/<peer id> or 10.0.0.1:4001`, { cause })
  }
}
