// Every setting of the forward proxy, and how they become its options.
import { readFileSync, statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { parse as parseYaml } from 'yaml'
import { type Endpoint, endpoint, optional, type Values } from '../../command-line/settings.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { readUsers } from '../../registry-proxy/forward/forward-access.ts'
import { type ForwardConfig, forwardConfig } from '../../registry-proxy/forward/forward-config.ts'
import type { ForwardProxyOptions } from '../../registry-proxy/forward/forward-proxy.ts'

export const FORWARD_SETTINGS = {
  'proxy.forward-listen': endpoint('', 'where the forward proxy is (HTTP_PROXY and HTTPS_PROXY of clients), for instance 127.0.0.1:4002; empty: there is none'),
  'proxy.forward-config': optional('FILE', 'YAML file with its rules, whose TLS it opens, and who may use it (docs/forward-proxy.md); without one it passes everything on'),
  'proxy.basic-auth-file': optional('FILE', 'file with NAME:PASSWORD lines: only who shows one of them may use the forward proxy'),
}

/** INVALID_ARGUMENT that names the key. */
export function forwardOptions(values: Values<typeof FORWARD_SETTINGS>, listen: Endpoint): ForwardProxyOptions {
  const file = values['proxy.forward-config']
  const users = values['proxy.basic-auth-file']
  return {
    listen,
    config: file === undefined ? forwardConfig({}) : readForwardConfig(file),
    ...(users !== undefined && { users: readUsers(readSecret(users, 'proxy.basic-auth-file'), users) }),
  }
}

/** The file, with the PEM files it names (paths beside it may be relative) read in. */
export function readForwardConfig(file: string): ForwardConfig {
  let document: unknown
  try {
    document = parseYaml(readText(file, 'proxy.forward-config'), { maxAliasCount: 10, logLevel: 'error' })
  } catch (cause) {
    if (cause instanceof SkimmerError) throw cause
    throw new SkimmerError('INVALID_ARGUMENT', `proxy.forward-config: ${file} is not YAML: ${(cause as Error).message}`, { cause })
  }
  let config: ForwardConfig
  try {
    config = forwardConfig(document)
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `${file}: ${(cause as Error).message}`, { cause })
  }
  if (config.intercept === undefined) return config
  const { cert, key, hosts } = config.intercept
  const beside = (written: string): string => (written.includes('-----BEGIN ') ? written : resolve(dirname(file), written))
  const pem = (written: string, name: string, read: typeof readText): string => (written.includes('-----BEGIN ') ? written : read(beside(written), name))
  return {
    ...config,
    intercept: {
      cert: pem(cert, `${file}: intercept.cert`, readText),
      key: pem(key, `${file}: intercept.key`, readSecret),
      hosts: hosts.map((host) => (host.ca === undefined ? host : { ...host, ca: pem(host.ca, `${file}: intercept.hosts`, readText) })),
    },
  }
}

function readText(file: string, what: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `${what}: ${file} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, { cause })
  }
}

/** A file that others on this machine must not read. */
function readSecret(file: string, what: string): string {
  const text = readText(file, what)
  if ((statSync(file).mode & 0o007) !== 0) throw new SkimmerError('INVALID_ARGUMENT', `${what}: ${file} can be read by everybody on this machine; chmod 600 it`)
  return text
}
