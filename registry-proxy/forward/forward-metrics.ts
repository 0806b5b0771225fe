// What the forward proxy counts. No label comes from outside.
import { Counter, Gauge, type Registry } from 'prom-client'

/** The way a request went. */
export type Way = 'blob' | 'file' | 'direct' | 'upgrade' | 'tunnel' | 'intercept' | 'refused'
export type ForwardOutcome = 'ok' | 'failed' | 'gone'

export class ForwardMetrics {
  readonly #requests: Counter
  readonly #bytes: Counter
  readonly #fallbacks: Counter
  readonly #certificates: Counter
  readonly #tunnels: Gauge

  constructor(registry: Registry) {
    const registers = [registry]
    this.#requests = new Counter({
      name: 'skimmer_forward_requests_total', registers, labelNames: ['way', 'outcome'],
      help: 'Requests to the forward proxy by way (blob and file: through the swarm, direct, upgrade, tunnel, intercept: TLS opened, refused) and outcome (ok, failed, gone: the client went)',
    })
    this.#bytes = new Counter({ name: 'skimmer_forward_sent_bytes', registers, labelNames: ['way'], help: 'Bytes of bodies and tunnels given to clients, by way (file, direct, tunnel); blobs are counted by the registry proxy' })
    this.#fallbacks = new Counter({ name: 'skimmer_forward_fallbacks_total', registers, help: 'Files that the swarm could not begin to give and that were fetched directly' })
    this.#certificates = new Counter({ name: 'skimmer_forward_certificates_total', registers, help: 'Certificates made for opened TLS' })
    this.#tunnels = new Gauge({ name: 'skimmer_forward_tunnels', registers, help: 'Open tunnels and upgraded connections' })
  }

  answered(way: Way, outcome: ForwardOutcome): void {
    this.#requests.inc({ way, outcome })
  }

  sent(way: 'file' | 'direct' | 'tunnel', bytes: number): void {
    this.#bytes.inc({ way }, bytes)
  }

  fellBack(): void {
    this.#fallbacks.inc()
  }

  madeCertificate(): void {
    this.#certificates.inc()
  }

  tunnel(change: 1 | -1): void {
    this.#tunnels.inc(change)
  }
}
