// containerd's hosts.toml: the proxy as the first host to ask for a registry (docs/hosts.md of containerd; read by every containerd since 1.5).
import type { TomlTable } from 'smol-toml'
import { SkimmerError } from '../../oci/errors.ts'
import type { FileEdit } from './setup-client.ts'
import { insertBlock, removeBlocks } from './marked-block.ts'
import { asTable, headerLines, means, parseToml, tomlString } from './toml-edit.ts'

// containerd 2.1 and newer give up connecting after this and ask the registry; older ones skip the key and wait 30 s for a proxy on a host that is gone. On loopback a refusal comes at once.
const DIAL_TIMEOUT = '1s'

/** Whether this hosts.toml asks the proxy already. */
export function asksProxy(text: string, path: string, proxy: string): boolean {
  const hosts = asTable(parseToml(text, path).host)
  return hosts !== undefined && Object.keys(hosts).some((host) => host.replace(/\/+$/, '') === proxy)
}

/** `registry`: undefined for `_default`, which is read for every registry without a directory of its own. */
export function hostsToml(path: string, proxy: string, registry: string | undefined): FileEdit {
  return {
    path,
    apply(text) {
      const entry = [`[host.${tomlString(proxy)}]`, '  capabilities = ["pull", "resolve"]', `  dial_timeout = "${DIAL_TIMEOUT}"`]
      // Without `server` containerd falls back to the registry itself; Docker Hub's address is written because people look for it.
      if (text === undefined) return insertBlock('', 0, registry === 'docker.io' ? ['server = "https://registry-1.docker.io"', '', ...entry] : entry)
      const before = parseToml(text, path)
      if (asksProxy(text, path, proxy)) return text
      const edited = insertBlock(text, headerLines(text)[0]?.offset ?? text.length, entry)
      const hosts = asTable(before.host)
      if (before.host !== undefined && hosts === undefined) throw unusual(path, entry)
      const ours: TomlTable = { capabilities: ['pull', 'resolve'], dial_timeout: DIAL_TIMEOUT }
      // containerd asks hosts in the order of the file, so the order is part of the meaning.
      const order = Object.keys(asTable(tryParse(edited)?.host) ?? {})
      if (!means(edited, { ...before, host: { [proxy]: ours, ...hosts } }) || order[0] !== proxy) throw unusual(path, entry)
      return edited
    },
    remove: removeBlocks,
  }
}

function tryParse(text: string): TomlTable | undefined {
  try {
    return parseToml(text, '')
  } catch {
    return undefined
  }
}

const unusual = (path: string, entry: string[]): SkimmerError =>
  new SkimmerError('UNSUPPORTED', `${path} is written in a way that cannot be edited safely; nothing was changed. Write this before its first host:\n${entry.join('\n')}`)
