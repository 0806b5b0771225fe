import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { hasCode } from '../../oci/errors.ts'
import { buildTar } from '../image/tar-builder.ts'
import { ErofsMounts, whyNoErofs } from './erofs-mount.ts'
import { PrivateContainerd, UnpackRefused, whyNoContainerd } from './private-containerd.ts'
import { treeDifferences, walkTrees } from './tree-walk.ts'
import { ZOO } from './zoo.ts'

const reason = [whyNoContainerd, whyNoErofs].filter((why) => why !== '').join(', ')
const suite = reason === '' ? describe : describe.skip

suite(`a mounted image is what containerd unpacks it to${reason === '' ? '' : ` (skipped: ${reason})`}`, () => {
  let containerd: PrivateContainerd
  const mounts = new ErofsMounts()
  beforeAll(async () => {
    containerd = await PrivateContainerd.start()
  })
  afterAll(async () => {
    await mounts.close()
    await containerd?.stop()
  })

  test.each(ZOO)('$what', async ({ layers }) => {
    const tars = layers.map(buildTar)
    const since = Date.now()
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
  })
})
