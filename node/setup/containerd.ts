// `skimmer setup containerd`: a hosts.toml for every registry (`_default`) or for those named, in the directory that containerd's CRI plugin reads.
import { join } from 'node:path'
import { SkimmerError } from '../../oci/errors.ts'
import type { ClientFiles } from './client-files.ts'
import { CERTS_DIRECTORY, configPath, readContainerdConfig } from './containerd-config.ts'
import { asksProxy, hostsToml } from './containerd-hosts.ts'
import { hasBlock } from './marked-block.ts'
import type { FileEdit, SetupClient } from './setup-client.ts'

const CONFIG = '/etc/containerd/config.toml'
const DOCKER_CERTS = /\.(?:crt|cert|key)$/

export const containerd: SetupClient = {
  name: 'containerd',
  record: 'containerd',
  summary: 'hosts.toml files, and config_path in config.toml where it is missing',
  reload: (changed) => [
    ...(changed.some((path) => path.endsWith('config.toml')) ? ['systemctl restart containerd    (config.toml is read when it starts; running containers stay)'] : ['nothing to restart: containerd reads hosts.toml at every pull']),
    `ctr reads it only when asked: ctr images pull --hosts-dir ${CERTS_DIRECTORY} IMAGE`,
  ],

  // Each has a file of its own, so those set up before stay as they are.
  registries: (asked) => asked,
  plan(request, files) {
    const configFile = request.configFile ?? CONFIG
    const config = readContainerdConfig(configFile, files, request.certsDirectory ?? CERTS_DIRECTORY)
    const roots = request.certsDirectory === undefined ? (config.certsDirectories ?? [CERTS_DIRECTORY]) : [request.certsDirectory]
    const notes = [...config.notes]
    const edits: FileEdit[] = config.edit === undefined ? [] : [config.edit]
    if (request.certsDirectory !== undefined && config.certsDirectories?.includes(request.certsDirectory) === false) {
      notes.push(`${configFile} has config_path = ${JSON.stringify(config.certsDirectories.join(':'))}: CRI does not read ${request.certsDirectory}.`)
    }
    if (request.registries.length === 0) {
      const root = defaultRoot(roots, files)
      edits.push(hostsToml(usable(join(root, '_default'), files), request.proxy, undefined))
      const own = roots.flatMap((directory) => files.names(directory, 'directories').filter((name) => name !== '_default').map((name) => join(directory, name)))
        .filter((directory) => !asks(join(directory, 'hosts.toml'), request.proxy, files))
      if (own.length > 0) notes.push(`_default is not read for registries with a directory of their own: ${own.join(', ')}. Name them with --registry to have the proxy asked for them too.`)
    }
    for (const registry of request.registries) {
      const directory = existing(registry, roots, files) ?? join(roots[0], registry)
      const fallback = roots.map((root) => join(root, '_default', 'hosts.toml')).find((path) => files.text(path) !== undefined)
      if (fallback !== undefined && existing(registry, roots, files) === undefined) {
        if (asks(fallback, request.proxy, files)) {
          notes.push(`${registry} needs no file of its own: ${fallback} asks the proxy for it already.`)
          continue
        }
        throw new SkimmerError('CONFLICT', `${fallback} holds for ${registry} now, and would not any more with a directory of its own. Leave --registry out to have the proxy added there, or write ${join(directory, 'hosts.toml')} by hand.`)
      }
      edits.push(hostsToml(usable(directory, files), request.proxy, registry))
    }
    return { edits, notes }
  },

  marked(request, files) {
    const configFile = request.configFile ?? CONFIG
    const roots = new Set([...(readContainerdConfig(configFile, files).certsDirectories ?? []), CERTS_DIRECTORY, ...(request.certsDirectory === undefined ? [] : [request.certsDirectory])])
    const hosts = [...roots].flatMap((root) => files.names(root, 'directories').map((name) => hostsToml(join(root, name, 'hosts.toml'), request.proxy, undefined)))
    return [configPath(configFile, '', ''), ...hosts].filter(({ path }) => hasBlock(files.text(path) ?? ''))
  },
}

/** Of several directories containerd takes the first that has the registry's own or a `_default`; so a `_default` must not come before somebody's own settings. */
const defaultRoot = (roots: readonly string[], files: ClientFiles): string =>
  roots.find((root) => files.text(join(root, '_default', 'hosts.toml')) !== undefined) ?? roots.findLast((root) => files.names(root, 'directories').length > 0) ?? roots[0]

/** The directory containerd would read for this registry: `host_port_` before `host:port`. */
function existing(registry: string, roots: readonly string[], files: ClientFiles): string | undefined {
  const names = [...new Set([registry.replace(/:(\d+)$/, '_$1_'), registry])]
  for (const root of roots) {
    const found = new Set(files.names(root, 'directories'))
    for (const name of names) if (found.has(name)) return join(root, name)
  }
  return undefined
}

function asks(path: string, proxy: string, files: ClientFiles): boolean {
  const text = files.text(path)
  return text !== undefined && asksProxy(text, path, proxy)
}

/** The hosts.toml of a directory. Certificates lying there in docker's way count only while there is no hosts.toml. */
function usable(directory: string, files: ClientFiles): string {
  const path = join(directory, 'hosts.toml')
  const certificates = files.text(path) === undefined ? files.names(directory, 'files').filter((name) => DOCKER_CERTS.test(name)) : []
  if (certificates.length > 0) {
    throw new SkimmerError('UNSUPPORTED', `${directory} holds certificates in docker's way (${certificates.join(', ')}), which containerd reads only while there is no hosts.toml. Write ${path} by hand first, naming them as ca and client; then run this again.`)
  }
  return path
}

