// What this room counts: requests by outcome, retries, bytes of blobs, resumed blobs. No label comes from outside: references are free text.
import { Counter, Histogram } from 'prom-client'
import type { Registry } from 'prom-client'

export interface RegistryMetrics {
  request(method: string, outcome: string, seconds: number): void
  retry(): void
  resumed(): void
  received(bytes: number): void
}

export const NO_METRICS: RegistryMetrics = { request: () => {}, retry: () => {}, resumed: () => {}, received: () => {} }

/** Several clients may share a registry of metrics: they then count together. */
export function registryMetrics(registry: Registry): RegistryMetrics {
  const counter = (name: string, help: string, labelNames: string[] = []): Counter =>
    (registry.getSingleMetric(name) as Counter | undefined) ?? new Counter({ name, help, labelNames, registers: [registry] })
  const requests = counter('skimmer_oci_requests_total', 'Requests to registries, by method and outcome (ok, refused, failed)', ['method', 'outcome'])
  const retries = counter('skimmer_oci_retries_total', 'Requests to registries that were sent again')
  const resumed = counter('skimmer_oci_resumed_blobs_total', 'Blob downloads that went on over a new connection')
  const received = counter('skimmer_oci_received_bytes', 'Bytes of blobs received from registries and mirrors')
  const name = 'skimmer_oci_request_seconds'
  const seconds =
    (registry.getSingleMetric(name) as Histogram | undefined) ??
    new Histogram({ name, help: 'Time until a registry answered with headers, retries included', labelNames: ['method'], buckets: [0.005, 0.02, 0.1, 0.3, 1, 3, 10, 30], registers: [registry] })
  return {
    request(method, outcome, duration) {
      requests.inc({ method, outcome })
      seconds.observe({ method }, duration)
    },
    retry: () => retries.inc(),
    resumed: () => resumed.inc(),
    received: (bytes) => received.inc(bytes),
  }
}
