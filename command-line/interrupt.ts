// Ctrl-C and SIGTERM as an AbortSignal: work stops in order, takes down what it made, and the exit code says so.
import { SkimmerError } from '../oci/errors.ts'

/** Runs `work`; the first signal aborts it, further ones are ignored while it takes down. Rejects with ABORTED after a signal. */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  const interrupt = (name: NodeJS.Signals): void => controller.abort(new SkimmerError('ABORTED', `interrupted by ${name}`))
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, interrupt)
  try {
    return await work(controller.signal)
  } catch (error) {
    throw controller.signal.aborted ? controller.signal.reason : error
  } finally {
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(name, interrupt)
  }
}
