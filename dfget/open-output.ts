// The output that a user's word means: a file, a special file, or standard output.
import { createWriteStream } from 'node:fs'
import { OutputFile, outputPlace, type OutputFileOptions } from './output-file.ts'
import { OutputStream } from './output-stream.ts'
import type { Output } from './output.ts'

export const STANDARD_OUTPUT = '-'

export async function openOutput(name: string, options: OutputFileOptions): Promise<Output> {
  if (name === STANDARD_OUTPUT) return new OutputStream(process.stdout, { name: 'standard output' })
  const { path, special } = await outputPlace(name, options)
  // A device or a pipe is written to, never replaced.
  return special ? new OutputStream(createWriteStream(path), { name, close: true }) : await OutputFile.create(name, path, options)
}
