import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { hasCode } from '../../oci/errors.ts'
import { buildTar, type TarEntry } from '../image/tar-builder.ts'
import { ErofsMounts, whyNoErofs } from './erofs-mount.ts'
import { PrivateContainerd, UnpackRefused, whyNoContainerd } from './private-containerd.ts'
import { randomLayers } from './random-layers.ts'
import { treeDifferences, walkTrees } from './tree-walk.ts'
import { ZOO } from './zoo.ts'

const reason = [whyNoContainerd, whyNoErofs].filter((why) => why !== '').join(', ')
const suite = reason === '' ? describe : describe.skip

suite(`a mounted image is what containerd unpacks it to${reason === '' ? '' : ` (skipped: ${reason})`}`, () => {
  let containerd: PrivateContainerd
  const since = Date.now() // images share layers that were unpacked before
  const mounts = new ErofsMounts()
  beforeAll(async () => {
    containerd = await PrivateContainerd.start()
  })
  afterAll(async () => {
    await mounts.close()
    await containerd?.stop()
  })

  async function compare(layers: TarEntry[][]) {
    const tars = layers.map(buildTar)
    const [unpacked, mounted] = await Promise.allSettled([containerd.unpack(tars), mounts.mountLayers(tars)])
    if (unpacked.status === 'rejected') {
      if (!(unpacked.reason instanceof UnpackRefused)) throw unpacked.reason
      // What containerd refuses, it shall refuse itself.
      expect(mounted.status === 'rejected' && hasCode(mounted.reason, 'UNSUPPORTED', 'INVALID_DATA') ? 'refused' : `mounted, but containerd says: ${unpacked.reason}`).toBe('refused')
      return
    }
    if (mounted.status === 'rejected') throw mounted.reason
    const [actual, reference] = await walkTrees([mounted.value, unpacked.value])
    expect(treeDifferences(actual, reference, since)).toEqual([])
  }

  test.each(ZOO)('$what', ({ layers }) => compare(layers))

  // As many again with every run; a failure prints its layers.
  test('random layers over few names', () => fc.assert(fc.asyncProperty(randomLayers(3), compare), { numRuns: 15, endOnFailure: true }))
})
