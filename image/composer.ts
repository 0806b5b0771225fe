// Merges the layers of an image into one tree, as overlayfs merges the directories that containerd unpacks them to.
import { rawLength } from './block-table.ts'
import type { LayerIndex } from './layer-index.ts'
import type { LayerNode } from './layer-node.ts'
import { LayerTree } from './layer-tree.ts'
import type { ImageTree } from './tree.ts'

/** What shows under one name: the topmost node, and the directories below that merge into it. */
interface Merged {
  readonly node: LayerNode
  readonly below: LayerNode[]
  /** Nothing further down shows through. */
  closed: boolean
}

/**
 * The merged tree of `layers`, lowest first. The same layers give the same tree. Throws UNSUPPORTED when only containerd's
 * own unpacking can say what the image is, INVALID_DATA when an index contradicts itself.
 *
 * What differs from an unpacked image by nature: times of directories that no tar entry describes (there: when they were unpacked),
 * and the link count of directories (overlayfs says 1).
 */
export function composeImage(layers: readonly LayerIndex[]): ImageTree {
  const trees: LayerTree[] = []
  for (const [position, { files, blocks }] of layers.entries()) {
    const tree = new LayerTree(position, rawLength(blocks), trees.toReversed())
    tree.apply(files)
    trees.push(tree)
  }
  if (trees.length === 0) trees.push(new LayerTree(0, 0, []))
  return {
    layers: layers.map(({ diffId, blocks }) => ({ diffId, rawLength: rawLength(blocks) })),
    inodes: mergeRoots(trees.map(({ root }) => root)),
  }
}

/** `roots` lowest first. An opaque mark on a root has no effect: overlayfs looks for it in directories it finds by name. */
function mergeRoots(roots: readonly LayerNode[]): LayerNode[] {
  const manyLayers = roots.length > 1
  const [root, ...below] = roots.toReversed()
  const described = [root, ...below].find(({ mtimeSeconds, mtimeNanos }) => mtimeSeconds > 0 || mtimeNanos > 0)
  if (described) [root.mtimeSeconds, root.mtimeNanos] = [described.mtimeSeconds, described.mtimeNanos]
  root.position = 0
  root.parent = 0
  const inodes = [root]
  const todo: Merged[] = [{ node: root, below, closed: false }]
  for (let next = todo.pop(); next; next = todo.pop()) {
    const directory = next.node
    const merged = next.below.length > 0 ? mergeChildren([directory, ...next.below]) : undefined
    const children = directory.children!
    const names = [...(merged ?? children).keys()].sort()
    const entries: [string, number][] = []
    const subdirectories: Merged[] = []
    for (const name of names) {
      const found = merged?.get(name)
      const node = found ? found.node : children.get(name)!
      if (manyLayers && node.isWhiteout) continue
      if (node.position === -1) {
        node.position = inodes.length
        inodes.push(node)
      }
      entries.push([name, node.position])
      if (node.type !== 'dir') continue
      node.parent = directory.position
      subdirectories.push(found ?? { node, below: [], closed: true })
    }
    directory.entries = entries
    directory.nlink = 2 + subdirectories.length
    directory.children = undefined
    // Last in, first out: a directory's own children lie side by side, then come its first subdirectory's.
    for (let i = subdirectories.length - 1; i >= 0; i--) todo.push(subdirectories[i])
  }
  return inodes
}

/** @param directories topmost first */
function mergeChildren(directories: readonly LayerNode[]): Map<string, Merged> {
  const merged = new Map<string, Merged>()
  for (const directory of directories) {
    for (const [name, node] of directory.children!) {
      const above = merged.get(name)
      const closes = node.type !== 'dir' || node.opaque
      if (!above) {
        merged.set(name, { node, below: [], closed: closes })
      } else if (!above.closed) {
        if (node.type === 'dir') above.below.push(node)
        above.closed = closes
      }
    }
  }
  return merged
}
