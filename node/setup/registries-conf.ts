// `skimmer setup podman` and `skimmer setup crio`: the proxy as a mirror in containers-registries.conf(5), which podman, CRI-O, skopeo and buildah read.
import { parse, type TomlTable } from 'smol-toml'
import { SkimmerError } from '../../oci/errors.ts'
import { registryPath } from '../../registry-proxy/registry-path.ts'
import type { ClientFiles } from './client-files.ts'
import { hasBlock, insertBlock, removeBlocks } from './marked-block.ts'
import type { FileEdit, SetupClient } from './setup-client.ts'
import { asTable, headerLines, headerPath, means, parseToml, tomlString } from './toml-edit.ts'

const MAIN = '/etc/containers/registries.conf'
const DROP_INS = '/etc/containers/registries.conf.d'
const OURS = `${DROP_INS}/50-skimmer.conf`
/** There is no entry for all registries; these are asked for most. */
const USUAL = ['docker.io', 'ghcr.io', 'quay.io', 'registry.k8s.io']

interface Entry {
  readonly prefix: string
  /** Where its images really are: HOST[:PORT][/PATH]. */
  readonly location: string
}

export const podman: SetupClient = client('podman', 'drop-in for containers-registries.conf(5): podman, buildah, skopeo', ['nothing to restart: podman, buildah and skopeo read it at every pull'])
export const crio: SetupClient = client('crio', 'the same drop-in, which CRI-O reads too', ['systemctl reload crio    (CRI-O reads registries.conf again on SIGHUP; nothing is restarted)'])

function client(name: string, summary: string, reload: string[]): SetupClient {
  return {
    name,
    record: 'registries-conf',
    summary,
    reload: () => reload,
    // One drop-in holds them all, so those set up before are written again.
    registries: (asked, before) => [...new Set([...before, ...(asked.length > 0 ? asked : USUAL)])],
    plan(request, files) {
      const notes = [`The proxy is asked for ${request.registries.join(', ')}. These clients have no entry for all registries: name others with --registry.`]
      const insecure = request.proxy.startsWith('http://')
      const proxy = request.proxy.replace(/^https?:\/\//, '')
      if (proxy.includes('/')) throw new SkimmerError('INVALID_ARGUMENT', `--proxy ${request.proxy}: a mirror of ${name} cannot have a path`)
      const mirrorOf = (location: string): string => {
        const [host, ...path] = location.split('/')
        return [proxy, registryPath(host), ...path].join('/')
      }
      const fresh: Entry[] = []
      const inPlace = new Map<string, Entry[]>()
      for (const registry of request.registries) {
        const found = entryOf(registry, files)
        if (found === undefined) fresh.push({ prefix: registry, location: registry })
        else if (found.blocked) notes.push(`${found.path} blocks ${registry}: left as it is.`)
        else inPlace.set(found.path, [...(inPlace.get(found.path) ?? []), found])
      }
      const mirror = (entry: Entry): TomlTable => ({ location: mirrorOf(entry.location), ...(insecure ? { insecure: true } : {}) })
      return {
        edits: [
          // An entry of the same prefix in another file would replace the user's, with all its settings: so the mirror goes into theirs.
          ...[...inPlace].map(([path, entries]) => mirrorsInPlace(path, entries.map((entry) => ({ prefix: entry.prefix, mirror: mirror(entry) })))),
          ...(fresh.length > 0 ? [dropIn(fresh.map((entry) => ({ prefix: entry.prefix, location: entry.location, mirror: mirror(entry) })))] : []),
        ],
        notes,
      }
    },
    marked: (_, files) => everyFile(files).filter((path) => hasBlock(files.text(path) ?? '')).map((path) => ({ path, apply: (text) => text ?? '', remove: removeBlocks })),
  }
}

/** In the order in which they are read; a later entry replaces an earlier one of the same prefix. */
const everyFile = (files: ClientFiles): string[] => [MAIN, ...files.names(DROP_INS, 'files').filter((name) => name.endsWith('.conf')).map((name) => `${DROP_INS}/${name}`)]

/** The user's own entry for a registry, the one that counts. */
function entryOf(registry: string, files: ClientFiles): (Entry & { path: string; blocked: boolean }) | undefined {
  let found: (Entry & { path: string; blocked: boolean }) | undefined
  for (const path of everyFile(files)) {
    const text = files.text(path)
    if (text === undefined) continue
    for (const table of registryTables(parseToml(removeBlocks(text), path))) {
      const prefix = prefixOf(table)
      if (prefix !== registry) continue
      found = { path, prefix, location: typeof table.location === 'string' && table.location !== '' ? table.location : prefix, blocked: table.blocked === true }
    }
  }
  return found
}

const registryTables = (document: TomlTable): TomlTable[] => (Array.isArray(document.registry) ? document.registry.map(asTable).filter((table) => table !== undefined) : [])
const prefixOf = (table: TomlTable): string | undefined => [table.prefix, table.location].find((value) => typeof value === 'string' && value !== '') as string | undefined

function mirrorLines(mirror: TomlTable): string[] {
  return ['[[registry.mirror]]', ...Object.entries(mirror).map(([key, value]) => `${key} = ${typeof value === 'string' ? tomlString(value) : String(value)}`)]
}

export function dropIn(entries: { prefix: string; location: string; mirror: TomlTable }[]): FileEdit {
  return {
    path: OURS,
    apply(text) {
      if (text !== undefined && text.trim() !== '') parseToml(text, OURS)
      const lines = entries.flatMap(({ prefix, location, mirror }, index) => [...(index > 0 ? [''] : []), '[[registry]]', `prefix = ${tomlString(prefix)}`, `location = ${tomlString(location)}`, ...mirrorLines(mirror)])
      return insertBlock(text ?? '', text?.length ?? 0, lines)
    },
    remove: removeBlocks,
  }
}

/** The mirror as the first of each entry that is there already. */
export function mirrorsInPlace(path: string, wanted: { prefix: string; mirror: TomlTable }[]): FileEdit {
  return {
    path,
    apply(text = '') {
      let edited = text
      for (const { prefix, mirror } of wanted) edited = addMirror(edited, path, prefix, mirror)
      return edited
    },
    remove: removeBlocks,
  }
}

function addMirror(text: string, path: string, prefix: string, mirror: TomlTable): string {
  const document = parseToml(text, path)
  const tables = registryTables(document)
  const at = tables.findLastIndex((table) => prefixOf(table) === prefix)
  const table = tables[at]
  const mirrors = table?.mirror ?? []
  const lines = mirrorLines(mirror)
  const refuse = (): never => {
    throw new SkimmerError('UNSUPPORTED', `${path}: the entry for ${prefix} is written in a way that cannot be edited safely; nothing was changed. Write this as its first mirror:\n${lines.join('\n')}`)
  }
  if (table === undefined || !Array.isArray(mirrors)) return refuse()
  if (mirrors.some((one) => asTable(one)?.location === mirror.location)) return text
  const headers = headerLines(text).map(({ offset, line }) => ({ offset, ...headerPath(line) }))
  const starts = headers.flatMap(({ path: names, array }, index) => (array && names?.length === 1 && names[0] === 'registry' ? [index] : []))
  const start = starts[at]
  if (start === undefined) return refuse()
  // Before whatever table follows the entry's own keys: its first mirror, the next entry, or the end of the file.
  const edited = insertBlock(text, headers[start + 1]?.offset ?? text.length, lines)
  const expected = parse(text, { integersAsBigInt: 'asNeeded' })
  registryTables(expected)[at].mirror = [mirror, ...mirrors]
  return means(edited, expected) ? edited : refuse()
}
