// Ends the wait for a stream's next piece when a signal says so, even if the stream itself never answers again.
import { SkimmerError } from '../oci/errors.ts'

/** Throws ABORTED from next() once `signal` is aborted; the input is then told to stop, without waiting for it. */
export async function* abortable<T>(input: AsyncIterable<T>, signal: AbortSignal | undefined): AsyncGenerator<T> {
  if (signal === undefined) {
    yield* input
    return
  }
  const iterator = input[Symbol.asyncIterator]()
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const onAbort = (): void => reject(new SkimmerError('ABORTED', 'indexing the layer was given up', { cause: signal.reason }))
  aborted.catch(() => {}) // nobody may be waiting when it comes
  if (signal.aborted) onAbort()
  else signal.addEventListener('abort', onAbort, { once: true })
  let done = false
  try {
    for (;;) {
      const next = await Promise.race([iterator.next(), aborted])
      if (next.done === true) {
        done = true
        return
      }
      yield next.value
    }
  } finally {
    signal.removeEventListener('abort', onAbort)
    if (!done) void Promise.resolve(iterator.return?.()).catch(() => {})
  }
}
