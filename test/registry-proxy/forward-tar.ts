// A tar with one file, as small as a layer can be.
import { pack } from 'tar-stream'

export async function tarOf(name: string, bytes: Buffer): Promise<Buffer> {
  const tar = pack()
  tar.entry({ name, size: bytes.length }, bytes)
  tar.finalize()
  const chunks: Buffer[] = []
  for await (const chunk of tar) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}
