// A process that stores blocks as fast as it can, says on stdout which ones were acknowledged, and waits to be killed.
import * as fs from 'node:fs'
import { openStore, sampleLayer } from './sample-layer.ts'

const moment = new Int32Array(new SharedArrayBuffer(4))

/** Written straight to the pipe: what was said was said, however soon the end comes. A full pipe, whose reader is busy, is waited for. */
function say(line: string): void {
  for (;;) {
    try {
      fs.writeSync(1, `${line}\n`)
      return
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
      Atomics.wait(moment, 0, 0, 5)
    }
  }
}

const [directory, seed, blocks] = process.argv.slice(2)
const layer = sampleLayer(Array.from({ length: Number(blocks) }, (_, block) => 1000 + (block * 7919) % 20_000), { seed: Number(seed) })
const store = await openStore(directory)
const resource = await store.add(`layer:${seed}`, layer.table, { diffId: layer.diffId })
resource.pin('container', { lasting: true })
resource.on('block', (block) => say(String(block)))
const growing = await store.create('making:1')
let next = 0
await Promise.all(Array.from({ length: 4 }, async () => {
  while (next < layer.packed.length) {
    const block = next++
    await resource.putBlock(block, layer.packed[block])
    await growing.append(layer.packed[block], 1, 0, new Uint8Array(32))
  }
}))
await resource.prove()
say('proved')
setInterval(() => {}, 1000)
