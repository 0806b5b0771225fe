// Every setting of the supernode, and how they become its configuration.
import { readFileSync } from 'node:fs'
import { SkimmerError } from '../../oci/errors.ts'
import type { SupernodeConfigInput } from '../../supernode/supernode-config.ts'
import { hostsConfig, REGISTRY_SETTINGS } from './registries.ts'
import { choice, count, duration, endpoint, list, optional, path, size, toggle, type Values } from '../../command-line/settings.ts'

export const SUPERNODE_SETTINGS = {
  root: path('/var/lib/skimmer-supernode', 'everything that survives: cached layers, indexes, images, identity'),
  listen: list('ADDRESS', ['/ip4/0.0.0.0/tcp/4980'], 'where nodes reach it'),
  announce: list('ADDRESS', [], 'addresses to tell nodes instead of those listened on'),
  'http.listen': endpoint('0.0.0.0:4981', 'where API, metrics and console are served'),
  'http.token-file': optional('FILE', 'file with the token that calls which change things must bear; without one only this host may make them'),
  'join-token-file': optional('FILE', 'file with the token that nodes must show; without one every node is admitted'),
  'cache.size': size('100GiB', 'disk space for layers'),
  'cache.ttl': duration('0', 'what nobody asked for in this time is dropped; 0: only the size counts'),
  'tag.ttl': duration('10s', 'how long a tag is believed before the registry is asked again'),
  'files.expire': duration('3m', "how long a copy of a file is good whose source cannot tell whether it changed; one that can (ETag, Last-Modified) is asked, every 10 s at most"),
  'files.loopback': toggle('false', 'also fetch files from this host and from link-local addresses for nodes; else no node can reach what listens there through the supernode'),
  'files.max-size': size('1TiB', 'longest file or blob that is taken'),
  'files.parallel': count('32', 'files and blobs downloaded at the same time; others wait, the most urgent first', { least: 1 }),
  'upload.rate': size('0', 'bytes per second given to nodes; 0: no limit'),
  'upload.slots': count('64', 'nodes served at the same time'),
  'log.level': choice(['trace', 'debug', 'info', 'warn', 'error', 'silent'], 'info', 'least important lines to log'),
  ...REGISTRY_SETTINGS,
}

export function supernodeConfig(values: Values<typeof SUPERNODE_SETTINGS>): SupernodeConfigInput {
  return {
    dataDir: values.root,
    listen: [...values.listen],
    announce: [...values.announce],
    http: { ...values['http.listen'], token: secretIn(values['http.token-file'], 'http.token-file') },
    cacheBytes: values['cache.size'],
    cacheTtlMs: values['cache.ttl'],
    tagTtlMs: values['tag.ttl'],
    files: { expireMs: values['files.expire'], loopback: values['files.loopback'], maxBytes: values['files.max-size'], parallel: values['files.parallel'] },
    joinToken: secretIn(values['join-token-file'], 'join-token-file'),
    registry: { hosts: hostsConfig(values), credentialsFile: values['registry.config'] },
    limits: { uploadSlots: values['upload.slots'], uploadBytesPerSecond: values['upload.rate'] || undefined },
  }
}

const SHORTEST_SECRET = 8

/** A secret from a file, so that it stands neither in `ps` nor in the configuration. */
export function secretIn(file: string | undefined, key: string): string | undefined {
  if (file === undefined) return undefined
  let secret: string
  try {
    secret = readFileSync(file, 'utf8').trim()
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `${key}: ${file} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, { cause })
  }
  if (secret.length < SHORTEST_SECRET) throw new SkimmerError('INVALID_ARGUMENT', `${key}: ${file} holds ${secret.length} characters; a secret has at least ${SHORTEST_SECRET}`)
  return secret
}
