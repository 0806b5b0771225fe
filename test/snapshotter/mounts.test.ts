// What containerd is told to mount for each kind of snapshot.
import { describe, expect, test } from '@jest/globals'
import { checkMountablePath, mountsOf } from '../../snapshotter/mounts.ts'

const features = { indexOff: true, userxattr: false }
const own = { fs: '/r/s/9/fs', work: '/r/s/9/work' }

describe('mounts', () => {
  test('without parents the directory itself is bound', () => {
    expect(mountsOf({ kind: 'active', ...own, lower: [] }, features)).toEqual([{ type: 'bind', source: '/r/s/9/fs', target: '', options: ['rw', 'rbind'] }])
    expect(mountsOf({ kind: 'view', ...own, lower: [] }, features)).toEqual([{ type: 'bind', source: '/r/s/9/fs', target: '', options: ['ro', 'rbind'] }])
  })

  test('a view of one directory or one lazy tree is that, read-only', () => {
    expect(mountsOf({ kind: 'view', ...own, lower: ['/run/images/x'] }, features)).toEqual([{ type: 'bind', source: '/run/images/x', target: '', options: ['ro', 'rbind'] }])
  })

  test('all else is an overlay, the nearest parent first', () => {
    expect(mountsOf({ kind: 'active', ...own, lower: ['/r/s/2/fs', '/run/images/x'] }, features)).toEqual([
      { type: 'overlay', source: 'overlay', target: '', options: ['index=off', 'workdir=/r/s/9/work', 'upperdir=/r/s/9/fs', 'lowerdir=/r/s/2/fs:/run/images/x'] },
    ])
    expect(mountsOf({ kind: 'view', ...own, lower: ['/a', '/b'] }, { indexOff: false, userxattr: true })).toEqual([{ type: 'overlay', source: 'overlay', target: '', options: ['userxattr', 'lowerdir=/a:/b'] }])
  })

  test('more layers than overlayfs can stack are refused', () => {
    expect(() => mountsOf({ kind: 'active', ...own, lower: Array.from({ length: 501 }, (_, index) => `/${index}`) }, features)).toThrow(/501 layers/)
  })

  test.each(['relative', '/with,comma', '/with:colon', '/with space', '/back\\slash'])('%s cannot hold snapshots', path => {
    expect(() => checkMountablePath(path)).toThrow(/cannot hold snapshots/)
  })
})
