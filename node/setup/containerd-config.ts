// containerd's config.toml: where its CRI plugin looks for hosts.toml (`config_path`), and setting that where it is not set.
import { dirname, isAbsolute, join, matchesGlob, resolve } from 'node:path'
import type { TomlTable } from 'smol-toml'
import { SkimmerError } from '../../oci/errors.ts'
import type { ClientFiles } from './client-files.ts'
import { insertBlock, removeBlocks } from './marked-block.ts'
import type { FileEdit } from './setup-client.ts'
import { asTable, headerLines, headerPath, means, parseToml, tomlString } from './toml-edit.ts'

export const CERTS_DIRECTORY = '/etc/containerd/certs.d'
// containerd 1.x with config version 2, and 2.x, which migrates that; 2.x with version 3; 1.x with version 1 (or none written).
const PLUGINS: Record<number, string> = { 3: 'io.containerd.cri.v1.images', 2: 'io.containerd.grpc.v1.cri', 1: 'cri' }

export interface ContainerdConfig {
  /** Directories that CRI reads hosts.toml from; undefined: none is configured. */
  readonly certsDirectories: readonly string[] | undefined
  /** Sets config_path; undefined: it is set, or must not be. */
  readonly edit: FileEdit | undefined
  readonly notes: readonly string[]
}

/** Reads the configuration and what it imports. */
export function readContainerdConfig(path: string, files: ClientFiles, certsDirectory = CERTS_DIRECTORY): ContainerdConfig {
  const text = withoutBlocks(files.text(path))
  const main = text === undefined ? {} : parseToml(text, path)
  const version = isEmpty(main) ? 2 : Number(main.version ?? 1)
  const plugin = PLUGINS[version]
  if (plugin === undefined) throw new SkimmerError('UNSUPPORTED', `${path}: version ${String(main.version)} of containerd's configuration is not known; set config_path = ${tomlString(certsDirectory)} for its registries by hand and use --certs-dir`)
  const documents = [main, ...imported(main, path, files)]
  const notes: string[] = []
  if (documents.some(({ disabled_plugins: disabled }) => Array.isArray(disabled) && disabled.some((name) => name === 'cri' || name === PLUGINS[2] || name === PLUGINS[3]))) {
    notes.push(`${path} disables containerd's CRI plugin: nothing there needs config_path. ctr reads hosts.toml with --hosts-dir, nerdctl by itself.`)
    return { certsDirectories: undefined, edit: undefined, notes }
  }
  const registries = documents.flatMap((document) => Object.values(PLUGINS).map((name) => asTable(asTable(asTable(document.plugins)?.[name])?.registry))).filter((table) => table !== undefined)
  const configured = registries.map(({ config_path: value }) => value).findLast((value) => typeof value === 'string' && value !== '') as string | undefined
  if (configured !== undefined) {
    const directories = configured.split(':').filter(Boolean)
    if (directories.length > 1) notes.push(`config_path names ${directories.length} directories. containerd 2.2 passes the list unsplit to its transfer service and then finds no hosts.toml at all (containerd issue 12808); with that version leave only ${directories[0]} there.`)
    return { certsDirectories: directories, edit: undefined, notes }
  }
  const inTheWay = registries.flatMap((table) => [...(Object.keys(asTable(table.mirrors) ?? {}).length > 0 ? ['mirrors'] : []), ...(Object.values(asTable(table.configs) ?? {}).some((entry) => asTable(entry)?.tls !== undefined) ? ['configs.*.tls'] : [])])
  if (inTheWay.length > 0) {
    notes.push(`${path} has registry.${[...new Set(inTheWay)].join(' and registry.')}, which containerd allows only without config_path. Kubernetes will not ask the proxy until you move these settings into hosts.toml files below ${certsDirectory} and set config_path = ${tomlString(certsDirectory)}. ctr and nerdctl read hosts.toml now.`)
    return { certsDirectories: undefined, edit: undefined, notes }
  }
  return { certsDirectories: undefined, edit: configPath(path, plugin, certsDirectory), notes }
}

/** The edit that sets config_path in the registry table of `plugin`. */
export function configPath(path: string, plugin: string, certsDirectory: string): FileEdit {
  const entry = `config_path = ${tomlString(certsDirectory)}`
  const header = `[plugins.${tomlString(plugin)}.registry]`
  return {
    path,
    apply(text) {
      const before = text === undefined ? {} : parseToml(text, path)
      // Without a version containerd 1.x reads another format.
      if (text === undefined || isEmpty(before)) return insertBlock(text ?? '', text?.length ?? 0, ['version = 2', '', header, `  ${entry}`])
      const plugins = asTable(before.plugins) ?? {}
      const cri = asTable(plugins[plugin]) ?? {}
      const wanted: TomlTable = { ...before, plugins: { ...plugins, [plugin]: { ...cri, registry: { ...asTable(cri.registry), config_path: certsDirectory } } } }
      const edited = editions(text, plugin, header, entry).find((candidate) => means(candidate, wanted))
      if (edited === undefined) throw new SkimmerError('UNSUPPORTED', `${path} is written in a way that cannot be edited safely; nothing was changed. Set this by hand, and run this again:\n${header}\n  ${entry}`)
      return edited
    },
    remove: removeBlocks,
  }
}

/** Ways to write it, the least surprising first; the caller keeps the first that means what it should. */
function editions(text: string, plugin: string, header: string, entry: string): string[] {
  const headers = headerLines(text)
  const own = headers.findIndex(({ line }) => {
    const found = headerPath(line)
    return found !== undefined && !found.array && found.path.length === 3 && found.path[0] === 'plugins' && found.path[1] === plugin && found.path[2] === 'registry'
  })
  const found: string[] = []
  if (own >= 0) {
    const { offset, line } = headers[own]
    const indent = `${/^[ \t]*/.exec(line)![0]}  `
    const body = text.slice(offset, headers[own + 1]?.offset ?? text.length)
    const written = /^[ \t]*config_path[ \t]*=.*$/m.exec(body)
    if (written !== null) found.push(insertBlock(text, offset + written.index, [indent + entry], written[0].replace(/\r$/, '')))
    const lineEnd = text.indexOf('\n', offset)
    found.push(insertBlock(text, lineEnd < 0 ? text.length : lineEnd + 1, [indent + entry]))
  }
  found.push(insertBlock(text, text.length, [header, `  ${entry}`]))
  return found
}

const isEmpty = (document: TomlTable): boolean => Object.keys(document).length === 0

const withoutBlocks = (text: string | undefined): string | undefined => (text === undefined ? undefined : removeBlocks(text))

/** What `imports` names, one step deep, in order; containerd lets later files win. */
function imported(main: TomlTable, path: string, files: ClientFiles): TomlTable[] {
  const patterns = Array.isArray(main.imports) ? main.imports.filter((pattern) => typeof pattern === 'string') : []
  return patterns.flatMap((pattern) => {
    const whole = isAbsolute(pattern) ? resolve(pattern) : join(dirname(path), pattern)
    return files.names(dirname(whole), 'files').map((name) => join(dirname(whole), name)).filter((file) => file === whole || matchesGlob(file, whole)).map((file) => parseToml(files.text(file) ?? '', file))
  })
}
