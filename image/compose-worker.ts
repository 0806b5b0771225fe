// The composer's thread: indexes in, an EROFS file out. It composes a made-up image first, so that its code is compiled when a container starts.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parentPort } from 'node:worker_threads'
import { CODEC_RAW, buildBlockTable } from './block-table.ts'
import { composeImage } from './composer.ts'
import { writeErofs } from './erofs-writer.ts'
import { decodeLayerIndex, encodeLayerIndex } from './index-format.ts'
import type { FileEntry } from './layer-index.ts'
import { SkimmerError } from '../oci/errors.ts'
import type { ComposeReply, ComposeRequest } from './composer-thread.ts'

const port = parentPort!

function compose(indexes: readonly Uint8Array[], path: string) {
  const tree = composeImage(indexes.map((bytes) => decodeLayerIndex(bytes)))
  return { written: writeErofs(tree, { path }), inodes: tree.inodes.length }
}

port.on('message', ({ number, indexes, path }: ComposeRequest) => {
  let reply: ComposeReply
  try {
    reply = { number, ...compose(indexes, path) }
  } catch (error) {
    reply = { number, code: error instanceof SkimmerError ? error.code : 'INTERNAL', message: (error as Error).message }
  }
  port.postMessage(reply)
})

/** As many files as make V8 optimise the loops; about a tenth of a second, at the daemon's start. */
function warmUp(): void {
  const directory = mkdtempSync(join(tmpdir(), 'skimmer-warm-'))
  try {
    const entry = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1, mtimeNanos: 0, link: '', major: 0, minor: 0, xattrs: [] } as const
    const files: FileEntry[] = []
    for (let number = 0; number < 6000; number++) {
      if (number % 20 === 0) files.push({ ...entry, path: `usr/d${number}`, type: 'dir', mode: 0o755, size: 0, offset: 0 })
      files.push(number % 7 === 0 ? { ...entry, path: `usr/d${number - (number % 20)}/l${number}`, type: 'symlink', size: 0, offset: 0, link: '../target' } : { ...entry, path: `usr/d${number - (number % 20)}/f${number}`, type: 'file', mtimeSeconds: number, size: 512, offset: 512 })
    }
    const hash = new Uint8Array(32)
    const blocks = buildBlockTable([{ rawLength: 4096, packedLength: 4096, codec: CODEC_RAW, hash }])
    const digest = `sha256:${'0'.repeat(64)}`
    const bytes = encodeLayerIndex({ diffId: digest, layerDigest: digest, layerSize: 1, blocks, files })
    compose([bytes, bytes], join(directory, 'warm.erofs'))
  } catch {
    // Only warmth is lost.
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
warmUp()
