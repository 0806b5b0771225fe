// `skimmer setup docker`: the proxy as a mirror of Docker Hub in daemon.json; Docker knows mirrors for no other registry.
import { isDeepStrictEqual } from 'node:util'
import { applyEdits, modify } from 'jsonc-parser'
import { SkimmerError } from '../../oci/errors.ts'
import type { ClientFiles } from './client-files.ts'
import type { FileEdit, SetupClient } from './setup-client.ts'

const CONFIG = '/etc/docker/daemon.json'
const KEY = 'registry-mirrors'
/** Where flags of dockerd are written: the same setting as a flag and in daemon.json keeps dockerd from starting. */
const FLAG_FILES = ['/etc/default/docker', '/etc/sysconfig/docker', '/etc/systemd/system/docker.service', '/lib/systemd/system/docker.service', '/usr/lib/systemd/system/docker.service']
const FLAG_DIRECTORIES = ['/etc/systemd/system/docker.service.d', '/run/systemd/system/docker.service.d', '/lib/systemd/system/docker.service.d', '/usr/lib/systemd/system/docker.service.d']

export const docker: SetupClient = {
  name: 'docker',
  record: 'docker',
  summary: 'registry-mirrors in daemon.json: Docker Hub only',
  reload: (_, undone) => undone
    ? ['systemctl reload docker when daemon.json still names other mirrors, else systemctl restart docker: by a reload dockerd does not forget the last one']
    : ['systemctl reload docker    (or kill -HUP the daemon; nothing is restarted)', 'docker info must then list it under "Registry Mirrors"'],

  registries: (asked) => asked,
  plan(request, files) {
    const others = request.registries.filter((registry) => registry !== 'docker.io')
    if (others.length > 0) {
      throw new SkimmerError('UNSUPPORTED', `Docker asks mirrors for docker.io alone, not for ${others.join(', ')}; other registries reach the swarm through the forward proxy (docs/forward-proxy.md)`)
    }
    const file = flagged(files)
    if (file !== undefined) throw new SkimmerError('CONFLICT', `${file} gives dockerd the flag --registry-mirror; with ${KEY} in daemon.json too dockerd would not start. Move the mirror from the flag into ${request.configFile ?? CONFIG} first.`)
    return {
      edits: [daemonJson(request.configFile ?? CONFIG, request.proxy)],
      notes: ['Docker asks mirrors for docker.io alone. Images of other registries reach the swarm through the forward proxy (docs/forward-proxy.md).'],
    }
  },

  // JSON has no comments to mark entries with: without the record nobody knows whose a mirror is.
  marked: () => [],
}

export function daemonJson(path: string, proxy: string): FileEdit {
  return {
    path,
    apply(text) {
      const empty = text === undefined || text.trim() === ''
      const before = empty ? {} : read(text, path)
      const mirrors = before[KEY] ?? []
      if (!Array.isArray(mirrors) || !mirrors.every((mirror) => typeof mirror === 'string')) throw new SkimmerError('INVALID_DATA', `${path}: ${KEY} is not a list of URLs; dockerd would not start with it`)
      if (mirrors.some((mirror) => same(mirror, proxy))) return text!
      if (empty) return `${JSON.stringify({ [KEY]: [proxy] }, null, 2)}\n`
      const formattingOptions = formatting(text)
      const edits = mirrors.length > 0 ? modify(text, [KEY, 0], proxy, { isArrayInsertion: true, formattingOptions }) : modify(text, [KEY], [proxy], { formattingOptions })
      return proven(applyEdits(text, edits), path, { ...before, [KEY]: [proxy, ...mirrors] })
    },
    remove(text) {
      if (text.trim() === '') return text
      const before = read(text, path)
      const mirrors = before[KEY]
      if (!Array.isArray(mirrors)) return text
      const at = mirrors.findIndex((mirror) => typeof mirror === 'string' && same(mirror, proxy))
      if (at < 0) return text
      const rest = mirrors.toSpliced(at, 1)
      const { [KEY]: _, ...others } = before
      const edits = modify(text, rest.length > 0 ? [KEY, at] : [KEY], undefined, { formattingOptions: formatting(text) })
      return proven(applyEdits(text, edits), path, rest.length > 0 ? { ...before, [KEY]: rest } : others)
    },
  }
}

// dockerd itself drops slashes at the end.
const same = (mirror: string, proxy: string): boolean => mirror.replace(/\/+$/, '') === proxy

/** As dockerd reads it: strict JSON, an object. */
function read(text: string, path: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', `${path} is not JSON as dockerd wants it (${(cause as Error).message}); nothing was changed`, { cause })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new SkimmerError('INVALID_DATA', `${path} is not a JSON object; nothing was changed`)
  return value as Record<string, unknown>
}

function proven(text: string, path: string, wanted: Record<string, unknown>): string {
  // Twice the same key, for instance: JSON.parse takes the last, the editor the first.
  if (!isDeepStrictEqual(read(text, path), wanted)) throw new SkimmerError('UNSUPPORTED', `${path} is written in a way that cannot be edited safely; nothing was changed. Edit ${KEY} by hand.`)
  return text
}

function formatting(text: string): { insertSpaces: boolean; tabSize: number; eol: string } {
  const indent = /^[ \t]+(?=")/m.exec(text)?.[0] ?? '  '
  return { insertSpaces: !indent.includes('\t'), tabSize: indent.includes('\t') ? 1 : indent.length, eol: text.includes('\r\n') ? '\r\n' : '\n' }
}

function flagged(files: ClientFiles): string | undefined {
  const drops = FLAG_DIRECTORIES.flatMap((directory) => files.names(directory, 'files').filter((name) => name.endsWith('.conf')).map((name) => `${directory}/${name}`))
  return [...FLAG_FILES, ...drops].find((path) => files.text(path)?.split('\n').some((line) => !/^\s*#/.test(line) && /--registry-mirror\b/.test(line)))
}
