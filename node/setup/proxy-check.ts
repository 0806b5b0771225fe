// Whether a registry proxy answers where a client was told to ask it.
import { request } from 'undici'
import { SkimmerError } from '../../oci/errors.ts'

const TIMEOUT_MS = 5000

/** GET /v2/, the registry API's own greeting. UNAVAILABLE: nobody answers, or somebody who is no registry. */
export async function checkProxy(proxy: string, signal?: AbortSignal): Promise<void> {
  let status: number
  let api: string
  try {
    const answer = await request(`${proxy}/v2/`, { headersTimeout: TIMEOUT_MS, bodyTimeout: TIMEOUT_MS, signal: AbortSignal.any([AbortSignal.timeout(TIMEOUT_MS), ...(signal === undefined ? [] : [signal])]) })
    status = answer.statusCode
    api = String(answer.headers['docker-distribution-api-version'] ?? '')
    await answer.body.dump()
  } catch (cause) {
    throw new SkimmerError('UNAVAILABLE', `the registry proxy at ${proxy} does not answer (${(cause as Error).message}); until it does, clients go to the registries themselves`, { cause })
  }
  // 401 is a registry's way to ask for credentials.
  if (status !== 200 && !(status === 401 && api !== '')) throw new SkimmerError('UNAVAILABLE', `${proxy}/v2/ answered ${status}: that is no registry proxy`)
}
