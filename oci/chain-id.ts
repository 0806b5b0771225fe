// ChainIDs: the identity of a stack of layers, by the OCI image spec (config.md, "Layer ChainID").
import { digestOf, parseDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'

/** The chainID of every prefix, bottom first: `chainIds(d)[i]` names layers 0..i applied in order. */
export function chainIds(diffIds: readonly string[]): string[] {
  const chain: string[] = []
  for (const diffId of diffIds) {
    parseDigest(diffId)
    const parent = chain.at(-1)
    chain.push(parent === undefined ? diffId : digestOf(`${parent} ${diffId}`))
  }
  return chain
}

/** The chainID of the whole stack. Throws INVALID_ARGUMENT for no layers at all. */
export function chainId(diffIds: readonly string[]): string {
  const last = chainIds(diffIds).at(-1)
  if (last === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'an image without layers has no chainID')
  return last
}
