// What a setup did, kept below the root so that --undo can give back every file as it was.
import { createHash } from 'node:crypto'
import { z } from 'zod'
import { SkimmerError } from '../../oci/errors.ts'
import type { ClientFiles } from './client-files.ts'

const DIRECTORY = '/var/lib/skimmer/setup'

const recordSchema = z.strictObject({
  version: z.literal(1),
  proxy: z.string(),
  registries: z.array(z.string()).max(1000),
  configFile: z.string().optional(),
  certsDirectory: z.string().optional(),
  /** That were made, for the files and for this record; an undo removes those that are empty then. */
  directories: z.array(z.string()),
  files: z.array(z.strictObject({
    path: z.string(),
    /** The file as it was, base64; null: there was none. */
    before: z.string().nullable(),
    /** sha256 of what the setup wrote. */
    after: z.string(),
    /** Beside it, for people; removed by an exact undo. */
    backup: z.string().optional(),
  })).max(1000),
})
export type SetupRecord = z.infer<typeof recordSchema>
export type RecordedFile = SetupRecord['files'][number]

export const recordPath = (name: string): string => `${DIRECTORY}/${name}.json`

/** undefined: never set up, or undone. INVALID_DATA: somebody wrote into it. */
export function readRecord(name: string, files: ClientFiles): SetupRecord | undefined {
  const path = recordPath(name)
  const text = files.text(path)
  if (text === undefined) return undefined
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', `${path}, the record of the setup, is not JSON; move it away to go on without it`, { cause })
  }
  const parsed = recordSchema.safeParse(value)
  if (!parsed.success) throw new SkimmerError('INVALID_DATA', `${path}, the record of the setup, is wrong at ${parsed.error.issues[0].path.join('.')}; move it away to go on without it`)
  return parsed.data
}

export const recordText = (record: SetupRecord): string => `${JSON.stringify(record, null, 2)}\n`

export const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
