// `skimmer preheat`: a supernode brings and holds an image or a file ahead of time.
import { readFileSync } from 'node:fs'
import { type Command, Option } from 'commander'
import { parseSize } from '../../command-line/units.ts'
import { readHeaderLines } from '../../dfget/header-lines.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { parseContentDigest } from '../../source/content-digest.ts'
import type { PreheatJob } from '../../supernode/preheat-job.ts'
import { SupernodeApi } from '../supernode-api.ts'
import { interruptible } from '../../command-line/interrupt.ts'

const POLL_MS = 200

interface PreheatFlags {
  supernode: string
  tokenFile?: string
  nodes?: boolean
  detach?: boolean
  platform?: string
  header: string[]
  headerFile?: string
  tag?: string
  application?: string
  identifier?: string
  digest?: string
  filteredQueryParam: string[]
  pieceLength?: number
  cacert?: string
  insecure?: boolean
}

const repeated = (value: string, before: string[]): string[] => [...before, value]
const isUrl = (what: string): boolean => /^[a-z][a-z0-9+.-]*:\/\//i.test(what)

export function addPreheat(program: Command): void {
  program
    .command('preheat')
    .summary('have a supernode bring an image or a file ahead of time')
    .description(
      'The supernode downloads an image from its registry once, indexes it and holds it, so that the first start of a container finds it as every later one does; ' +
      'or it downloads what a URL answers, for dfget. With --nodes every node that is connected then brings all of it too. ' +
      'A file is found by those who ask for it with the same words: URL, --tag, --application, --identifier, --digest, --piece-length, and headers that are no credentials.',
    )
    .argument('<WHAT>', 'an image reference, or a URL (https://…): a file')
    .addOption(new Option('-s, --supernode <URL>', "the supernode's HTTP address, for instance http://10.0.0.1:4981").env('SKIMMER_SUPERNODE').makeOptionMandatory())
    .option('--nodes', 'also push it to all nodes')
    .addOption(new Option('--token-file <FILE>', "file with the token of the supernode's API; needed anywhere but on its own host").env('SKIMMER_HTTP_TOKEN_FILE'))
    .option('--detach', 'print the job id and do not wait')
    .option('--platform <OS/ARCH>', "of an image; default: the supernode's own")
    .addOption(new Option("-H, --header <'NAME: VALUE'>", 'of a file: request header for the source; repeat it. Secrets are safer in a --header-file').default([], '').argParser(repeated))
    .option('--header-file <FILE>', 'of a file: request headers, one a line; - is standard input')
    .option('--tag <TEXT>', 'of a file: downloads of one URL with different tags are different files')
    .option('--application <TEXT>', 'as --tag')
    .option('-i, --identifier <TEXT>', 'as --tag')
    .option('--digest <DIGEST>', 'of a file: the content must have it: sha256:…, sha512:…, md5:…, crc32:…')
    .addOption(new Option('-f, --filtered-query-param <NAME>', 'of a file: query parameter that does not make another file; repeat it').default([], '').argParser(repeated))
    .addOption(new Option('--piece-length <SIZE>', 'of a file: size of the blocks, 64KiB to 4MiB [by the length]').argParser(parseSize))
    .option('--cacert <FILE>', 'of a file: certificate authorities of the source, PEM')
    .option('--insecure', "of a file: do not check the source's certificate")
    .action(async (what: string, flags: PreheatFlags) => {
      const api = new SupernodeApi(flags.supernode, flags.tokenFile)
      const request = isUrl(what) ? fileRequest(what, flags) : imageRequest(what, flags)
      const shown = isUrl(what) ? what.replace(/^([^?#]*:\/\/)[^/?#]*@/, '$1').replace(/[?#].*/s, '') : what
      await interruptible(async (signal) => {
        let job = await api.call<PreheatJob>('POST', '/api/v1/preheats', { ...request, scope: flags.nodes ? 'all' : 'supernode' })
        if (flags.detach) return void process.stdout.write(`${job.id}\n`)
        const { Progress } = await import('../../command-line/progress.ts')
        const progress = new Progress()
        try {
          while (job.state === 'WAITING' || job.state === 'RUNNING') {
            signal.throwIfAborted()
            await new Promise((resolve) => setTimeout(resolve, POLL_MS))
            job = await api.call<PreheatJob>('GET', `/api/v1/preheats/${job.id}`)
            const { bytes, total, nodes, nodesDone } = job.progress
            if (total > 0) progress.update([{ name: shown, done: bytes, total, note: nodes > 0 ? `${nodesDone} of ${nodes} nodes` : job.state.toLowerCase() }])
          }
        } finally {
          progress.stop()
        }
        if (job.state === 'FAILED') throw new SkimmerError(job.error?.code ?? 'UNAVAILABLE', job.error?.message ?? 'the job failed')
        process.stdout.write(job.type === 'file' ? `${shown} is here and held\n` : `${shown} is indexed and held\n`)
      })
    })
}

function imageRequest(url: string, flags: PreheatFlags): object {
  const misplaced = (['headerFile', 'tag', 'application', 'identifier', 'digest', 'pieceLength', 'cacert', 'insecure'] as const).find((flag) => flags[flag] !== undefined)
  if (misplaced !== undefined || flags.header.length > 0 || flags.filteredQueryParam.length > 0) {
    throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(url)} is an image: --${(misplaced ?? (flags.header.length > 0 ? 'header' : 'filtered-query-param')).replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)} is for files, whose URLs begin with https:// or http://`)
  }
  return { type: 'image', url, platform: flags.platform }
}

function fileRequest(url: string, { platform, tag, application, identifier, digest, pieceLength, insecure, ...flags }: PreheatFlags): object {
  if (platform !== undefined) throw new SkimmerError('INVALID_ARGUMENT', '--platform is for images')
  const headers = {
    ...(flags.headerFile === undefined ? {} : readHeaderLines(readWords(flags.headerFile, '--header-file').split(/\r?\n/), flags.headerFile)),
    ...readHeaderLines(flags.header, '--header'),
  }
  return {
    type: 'file', url, tag, application, identifier, digest: digest === undefined ? undefined : parseContentDigest(digest).text, pieceLength, insecure,
    ...(Object.keys(headers).length > 0 && { headers }),
    ...(flags.filteredQueryParam.length > 0 && { filteredQueryParams: flags.filteredQueryParam.flatMap((names) => names.split('&')).filter(Boolean) }),
    ...(flags.cacert !== undefined && { ca: readWords(flags.cacert, '--cacert') }),
  }
}

function readWords(file: string, option: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8')
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `${option}: ${file} cannot be read (${(cause as NodeJS.ErrnoException).code})`, { cause })
  }
}
