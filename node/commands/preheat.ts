// `skimmer preheat`: a supernode pulls, indexes and holds an image ahead of time.
import { type Command, Option } from 'commander'
import { SkimmerError, type ErrorCode } from '../../oci/errors.ts'
import type { PreheatJob } from '../../supernode/preheat-job.ts'
import { secretIn } from '../config/supernode-settings.ts'
import { interruptible } from '../../command-line/interrupt.ts'

const POLL_MS = 200

export function addPreheat(program: Command): void {
  program
    .command('preheat')
    .summary('have a supernode pull and index an image ahead of time')
    .description(
      'The supernode downloads the image from its registry once, indexes it and holds it, so that the first start of a container finds it as every later one does. ' +
      'With --nodes every node that is connected then brings the whole image too.',
    )
    .argument('<IMAGE>', 'an image reference')
    .addOption(new Option('-s, --supernode <URL>', "the supernode's HTTP address, for instance http://10.0.0.1:4981").env('SKIMMER_SUPERNODE').makeOptionMandatory())
    .option('--platform <OS/ARCH>', "default: the supernode's own")
    .option('--nodes', 'also push the image to all nodes')
    .addOption(new Option('--token-file <FILE>', "file with the token of the supernode's API; needed anywhere but on its own host").env('SKIMMER_HTTP_TOKEN_FILE'))
    .option('--detach', 'print the job id and do not wait')
    .action(async (image: string, flags: { supernode: string; platform?: string; nodes?: boolean; tokenFile?: string; detach?: boolean }) => {
      if (!URL.canParse(flags.supernode) || !/^https?:\/\//.test(flags.supernode)) throw new SkimmerError('INVALID_ARGUMENT', `--supernode: ${JSON.stringify(flags.supernode)} is not a URL, for instance http://10.0.0.1:4981`)
      const { request } = await import('undici')
      const token = secretIn(flags.tokenFile, '--token-file')
      const headers = { 'content-type': 'application/json', ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) }
      const call = async (method: 'GET' | 'POST', path: string, body?: unknown): Promise<PreheatJob> => {
        let answer
        try {
          answer = await request(new URL(path, flags.supernode), { method, headers, body: body === undefined ? undefined : JSON.stringify(body), headersTimeout: 20_000, bodyTimeout: 20_000 })
        } catch (cause) {
          throw new SkimmerError('UNAVAILABLE', `the supernode at ${flags.supernode} does not answer: ${(cause as Error).message}`, { cause })
        }
        const value = (await answer.body.json()) as PreheatJob & { code?: ErrorCode; message?: string }
        if (answer.statusCode >= 300) throw new SkimmerError(value.code ?? 'UNAVAILABLE', value.message ?? `the supernode answered ${answer.statusCode}`)
        return value
      }
      await interruptible(async (signal) => {
        let job = await call('POST', '/api/v1/preheats', { type: 'image', url: image, platform: flags.platform, scope: flags.nodes ? 'all' : 'supernode' })
        if (flags.detach) return void process.stdout.write(`${job.id}\n`)
        const { Progress } = await import('../../command-line/progress.ts')
        const progress = new Progress()
        try {
          while (job.state === 'WAITING' || job.state === 'RUNNING') {
            signal.throwIfAborted()
            await new Promise((resolve) => setTimeout(resolve, POLL_MS))
            job = await call('GET', `/api/v1/preheats/${job.id}`)
            const { bytes, total } = job.progress
            if (total > 0) progress.update([{ name: image, done: bytes, total, note: job.state.toLowerCase() }])
          }
        } finally {
          progress.stop()
        }
        if (job.state === 'FAILED') throw new SkimmerError(job.error?.code ?? 'UNAVAILABLE', job.error?.message ?? 'the job failed')
        process.stdout.write(`${image} is indexed and held\n`)
      })
    })
}
