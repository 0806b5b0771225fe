// A real nginx in the lab that serves a directory of files, and what its access log says left it.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { LabHost } from './network.ts'
import type { LabProcess } from './process.ts'

const PORT = 8080

export class LabFileServer {
  readonly host: LabHost
  readonly url: string
  readonly process: LabProcess
  readonly #logFile: string

  private constructor(host: LabHost, child: LabProcess, logFile: string) {
    this.host = host
    this.url = `http://${host.address}:${PORT}`
    this.process = child
    this.#logFile = logFile
  }

  /** Serves `files` over plain HTTP, with ranges, ETag and Last-Modified, as nginx does by itself. */
  static async start(host: LabHost, options: { files: string; directory: string }): Promise<LabFileServer> {
    mkdirSync(options.directory, { recursive: true })
    const config = join(options.directory, 'nginx.conf')
    const logFile = join(options.directory, 'access.log')
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${join(options.directory, name)};`).join(' ')
    writeFileSync(
      config,
      `daemon off; master_process on; worker_processes 1; user root;
pid ${join(options.directory, 'nginx.pid')};
error_log ${join(options.directory, 'error.log')} warn;
events { worker_connections 256; }
http {
  ${temporary}
  log_format bytes '$remote_addr $body_bytes_sent $request_uri';
  access_log ${logFile} bytes;
  sendfile on; tcp_nopush on;
  server { listen ${host.address}:${PORT}; root ${options.files}; autoindex on; }
}
`,
    )
    const child = host.launch('nginx', ['nginx', '-c', config, '-e', join(options.directory, 'error.log')], { logFile: join(options.directory, 'nginx.log') })
    const server = new LabFileServer(host, child, logFile)
    await child.until('it answered', async () => (await host.run(['bash', '-c', `exec 3<>/dev/tcp/${host.address}/${PORT}`], { mayFail: true })).code === 0)
    return server
  }

  /** Bytes of bodies of `path` that nginx sent, to all clients; a request that still runs is not counted yet. */
  served(path: string): number {
    let bytes = 0
    for (const line of readFileSync(this.#logFile, 'latin1').split('\n')) {
      const [, sent, uri] = line.split(' ')
      if (uri?.split('?')[0] === path) bytes += Number(sent)
    }
    return bytes
  }
}
