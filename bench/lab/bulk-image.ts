// An image of about 200 MB that no compressor shrinks: what pulling it costs is moving it, not unpacking it.
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Say } from './image.ts'
import { run } from './process.ts'

/** Change it when the recipe below changes: the cache is keyed by it. */
const RECIPE = 1
/** Layers of unequal size, as images have them; MiB. */
const LAYERS = [96, 48, 32, 16, 8]

/** Makes the image's OCI layout under `cache`, once, and answers its path (tag `latest`). */
export async function makeBulkImage(cache: string, say: Say, signal?: AbortSignal): Promise<string> {
  const layout = join(cache, `bulk-${RECIPE}`)
  const done = join(layout, '.complete')
  if (existsSync(done)) return layout
  say('image: making one of 200 MiB')
  const work = join(cache, `work-${process.pid}`)
  rmSync(layout, { recursive: true, force: true })
  try {
    await run(['umoci', 'init', '--layout', layout])
    await run(['umoci', 'new', '--image', `${layout}:latest`])
    for (const [number, mebibytes] of LAYERS.entries()) {
      const tree = join(work, `layer${number}`)
      mkdirSync(tree, { recursive: true })
      for (let file = 0; file < 8; file++) await run(['dd', 'if=/dev/urandom', `of=${join(tree, `data${number}-${file}`)}`, 'bs=64K', `count=${mebibytes * 2}`, 'status=none'], { signal })
      const tar = `${tree}.tar`
      await run(['tar', '-C', tree, '--format=pax', '--numeric-owner', '--sort=name', '-cf', tar, '.'], { signal })
      await run(['umoci', 'raw', 'add-layer', '--image', `${layout}:latest`, tar], { signal, timeoutMs: 600_000 })
    }
    await run(['umoci', 'gc', '--layout', layout])
    writeFileSync(done, '')
    return layout
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}
