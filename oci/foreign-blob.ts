// Foreign layers: blobs that live at URLs of their own. Asked only where the host's settings allow it, never with credentials.
import type { RegistryClientOptions } from './defaults.ts'
import { SkimmerError } from './errors.ts'
import { sendPersistently } from './retry.ts'
import { discard } from './transport.ts'
import type { HttpResponse, Transport } from './transport.ts'

/** The first URL that answers. HTTPS only: nothing else names a host one can hold to account. Throws NOT_FOUND when none does. */
export async function openForeign(transport: Transport, urls: readonly string[], request: RegistryClientOptions & { what: string; headers?: Record<string, string>; signal?: AbortSignal }): Promise<HttpResponse> {
  let last: unknown
  for (const text of urls) {
    const url = URL.parse(text)
    if (url === null || url.protocol !== 'https:' || url.username !== '' || url.password !== '') continue
    try {
      const response = await sendPersistently(transport, { method: 'GET', url, what: request.what, headers: request.headers, signal: request.signal }, request)
      if (response.status === 200 || response.status === 206 || response.status === 416) return response
      await discard(response.body)
    } catch (error) {
      if (request.signal?.aborted) throw error
      last = error
    }
  }
  throw new SkimmerError('NOT_FOUND', `${request.what}: neither the registry nor any of the layer's ${urls.length} foreign URLs has it`, { cause: last })
}
