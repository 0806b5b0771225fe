// A real docker-registry in the lab, and what its access log says left it.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { LabHost } from './network.ts'
import type { LabProcess } from './process.ts'

const PORT = 5000

export interface ServedBlobs {
  /** Client address to bytes of blob bodies written to it. */
  readonly byClient: Map<string, number>
}

export class LabRegistry {
  readonly host: LabHost
  readonly address: string
  readonly process: LabProcess
  readonly #logFile: string

  private constructor(host: LabHost, child: LabProcess, logFile: string) {
    this.host = host
    this.address = `${host.address}:${PORT}`
    this.process = child
    this.#logFile = logFile
  }

  /** Serves `storage` (kept between runs) on the host's address, plain HTTP. */
  static async start(host: LabHost, options: { storage: string; directory: string }): Promise<LabRegistry> {
    mkdirSync(options.storage, { recursive: true })
    mkdirSync(options.directory, { recursive: true })
    const config = join(options.directory, 'registry.yml')
    const logFile = join(options.directory, 'registry.log')
    writeFileSync(
      config,
      `version: 0.1
log: { level: warn, accesslog: { disabled: false } }
storage: { filesystem: { rootdirectory: ${JSON.stringify(options.storage)} }, delete: { enabled: true } }
http: { addr: "${host.address}:${PORT}", secret: lab }
`,
    )
    const child = host.launch('docker-registry', ['docker-registry', 'serve', config], { logFile, env: { OTEL_TRACES_EXPORTER: 'none' } })
    const registry = new LabRegistry(host, child, logFile)
    await child.until('it answered', async () => (await host.run(['bash', '-c', `exec 3<>/dev/tcp/${host.address}/${PORT}`], { mayFail: true })).code === 0)
    return registry
  }

  /**
   * Bytes of blob bodies per client, from the access log (Apache combined format: `client - - [time] "GET /v2/…/blobs/sha256:… HTTP/1.1" status bytes …`).
   * `digests` narrows it to these blobs (an image's layers).
   */
  served(digests: ReadonlySet<string>): ServedBlobs {
    const byClient = new Map<string, number>()
    const line = /^(\S+) - - \[[^\]]*\] "GET \/v2\/\S+\/blobs\/(sha256:[0-9a-f]{64})[^"]*" (?:200|206) (\d+)/gm
    for (const [, client, digest, bytes] of readFileSync(this.#logFile, 'latin1').matchAll(line)) {
      if (digests.has(digest)) byClient.set(client, (byClient.get(client) ?? 0) + Number(bytes))
    }
    return { byClient }
  }
}
