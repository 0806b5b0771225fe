// The FUSE channel's metrics: threads count in shared memory, the registry reads it when asked.
import { Counter, Gauge, Histogram } from 'prom-client'
import type { Registry } from 'prom-client'
import { COUNT, COUNTS } from './fuse-messages.ts'

export interface ChannelMetrics {
  waited(milliseconds: number): void
  failed(): void
}

/** Registers nothing without a registry. `counts` holds COUNTS columns a thread. */
export function channelMetrics(registry: Registry | undefined, counts: Float64Array, parked: () => number): ChannelMetrics {
  if (registry === undefined) return { waited: () => undefined, failed: () => undefined }
  const registers = [registry]
  const sum = (column: number): number => {
    let total = 0
    for (let at = column; at < counts.length; at += COUNTS) total += counts[at]
    return total
  }
  const shared = (name: string, help: string, column: number): void => {
    let seen = 0
    const counter: Counter = new Counter({
      name, help, registers,
      collect: () => {
        const now = sum(column)
        counter.inc(now - seen)
        seen = now
      },
    })
  }
  shared('skimmer_blockdev_requests_total', 'FUSE requests received', COUNT.REQUESTS)
  shared('skimmer_blockdev_reads_total', 'FUSE reads answered', COUNT.READS)
  shared('skimmer_blockdev_read_bytes_total', 'Bytes of answers to FUSE reads, headers included', COUNT.BYTES)
  shared('skimmer_blockdev_waits_total', 'FUSE requests that had to wait for blocks or a restart', COUNT.WAITS)
  const gauge: Gauge = new Gauge({ name: 'skimmer_blockdev_parked_requests', help: 'FUSE requests that wait now', registers, collect: () => gauge.set(parked()) })
  const wait = new Histogram({ name: 'skimmer_blockdev_wait_seconds', help: 'How long waiting FUSE requests waited', registers, buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60] })
  const failures = new Counter({ name: 'skimmer_blockdev_read_errors_total', help: 'Reads that ended in EIO', registers })
  return { waited: (milliseconds) => wait.observe(milliseconds / 1000), failed: () => failures.inc() }
}
