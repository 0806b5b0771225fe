// A real docker-registry on loopback, and pushing OCI layouts to it.
import { mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { LabProcess, run } from '../../bench/lab/process.ts'

export class LoopbackRegistry {
  readonly address: string
  readonly #process: LabProcess

  private constructor(address: string, child: LabProcess) {
    this.address = address
    this.#process = child
  }

  static async start(directory: string): Promise<LoopbackRegistry> {
    mkdirSync(directory, { recursive: true })
    const address = `127.0.0.1:${await freePort()}`
    const config = join(directory, 'registry.yml')
    writeFileSync(config, `version: 0.1\nlog: { level: error, accesslog: { disabled: true } }\nstorage: { filesystem: { rootdirectory: ${JSON.stringify(join(directory, 'data'))} } }\nhttp: { addr: "${address}", secret: test }\n`)
    const child = new LabProcess('docker-registry', ['docker-registry', 'serve', config], { logFile: join(directory, 'registry.log'), env: { OTEL_TRACES_EXPORTER: 'none' } })
    await child.until('it answered', () => fetch(`http://${address}/v2/`).then(response => response.ok, () => false))
    return new LoopbackRegistry(address, child)
  }

  async push(layout: string, name: string): Promise<string> {
    const reference = `${this.address}/${name}`
    await run(['skopeo', 'copy', '--quiet', '--dest-tls-verify=false', `oci:${layout}:latest`, `docker://${reference}`])
    return reference
  }

  stop(): Promise<void> {
    return this.#process.stop()
  }
}

function freePort(): Promise<number> {
  return new Promise(resolve => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo
      server.close(() => resolve(port))
    })
  })
}
