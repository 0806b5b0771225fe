// How a path of a tar finds its place in a layer's own directory, symlinks included: containerd's rules, step by step.
import { SkimmerError } from '../oci/errors.ts'
import type { LayerNode } from './layer-node.ts'

const MAX_LINKS = 255 // containerd's bound for one path
const MAX_KERNEL_LINKS = 40
/** Characters of an error's message: paths can be long. */
const MAX_SHOWN = 400
/** Names on a path that links are followed on. Resolving takes the square of it. */
const MAX_DEPTH = 256

/** Thrown for what containerd's own unpacking would refuse or what cannot be told: it then decides itself. */
export function unsupported(what: string): SkimmerError {
  const shown = what.length > MAX_SHOWN ? `${what.slice(0, MAX_SHOWN)}…` : what
  return new SkimmerError('UNSUPPORTED', `${shown}; unpack this layer the ordinary way`)
}

/** `path` made of plain names from the root: `.` and empty parts dropped, `..` taken lexically and never above the root. */
export function cleanParts(path: string): string[] {
  const parts: string[] = []
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue
    if (part === '..') parts.pop()
    else parts.push(part)
  }
  return parts
}

/**
 * What lstat(2) says at these names below `root`, following links in the middle as the kernel does, on a host where `root`
 * is a directory somewhere: links that would leave it mean something else there, and are refused.
 */
function lstat(root: LayerNode, parts: readonly string[]): LayerNode | undefined {
  const trail = [root]
  const rest = parts.toReversed()
  for (let links = 0; rest.length > 0; ) {
    const directory = trail[trail.length - 1]
    if (directory.type !== 'dir') throw unsupported(`'${parts.join('/')}' leads through something that is not a directory`)
    const name = rest.pop()!
    if (name === '' || name === '.') continue
    if (name === '..') {
      if (trail.length === 1) throw unsupported(`'${parts.join('/')}' leads through a link out of the layer`)
      trail.pop()
      continue
    }
    const node = directory.children!.get(name)
    if (!node) return undefined
    if (node.type !== 'symlink' || rest.length === 0) trail.push(node)
    else if (node.link.startsWith('/') || ++links > MAX_KERNEL_LINKS) throw unsupported(`'${parts.join('/')}' leads through links that depend on the host`)
    else rest.push(...node.link.split('/').toReversed())
  }
  return trail[trail.length - 1]
}

/**
 * The link-free names that `path` stands for below `root`; the last ones may not exist. Each pass replaces the links it meets
 * by their targets and goes on without looking at what it put in; passes repeat until none is met (fs.RootPath of containerd).
 */
export function resolveLinks(root: LayerNode, path: string): string[] {
  let parts = cleanParts(path)
  let links = 0
  for (let before = -1; before !== links; ) {
    before = links
    let resolved: string[] = []
    let reached: LayerNode | undefined = root // where `resolved` leads; unknown once a link was put in
    let linked = false
    for (const name of parts) {
      resolved.push(name)
      if (resolved.length > MAX_DEPTH || links > MAX_LINKS) throw unsupported(`symlinks lead too far from '${path}'`)
      if (!linked && reached && reached.type !== 'dir') throw unsupported(`'${path}' leads through something that is not a directory`)
      reached = linked ? lstat(root, resolved) : reached?.children!.get(name)
      if (reached?.type !== 'symlink') continue
      links++
      linked = true
      resolved.pop()
      resolved = cleanParts(reached.link.startsWith('/') ? reached.link : `${resolved.join('/')}/${reached.link}`)
    }
    parts = resolved
  }
  return parts
}

/** The node at `path`, links followed to the last one; undefined when there is none. */
export function findNode(root: LayerNode, path: string): LayerNode | undefined {
  let node = root
  for (const name of path.split('/')) {
    if (node.type !== 'dir') throw unsupported(`'${path}' leads through something that is not a directory`)
    const child = node.children!.get(name)
    if (!child) return undefined
    if (child.type === 'symlink') return lstat(root, resolveLinks(root, path))
    node = child
  }
  return node
}
