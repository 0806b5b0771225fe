// A node as its own source: without any supernode it asks the registry and indexes layers itself, with the supernode's own code.
import type { ImageCatalog, ResolvedImage } from '../../supernode/image-catalog.ts'
import type { ImageLayerRecord } from '../../supernode/image-record.ts'
import type { LayerOrigin } from '../../supernode/layer-origin.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { atDigest, formatReference, parseReference } from '../../oci/reference.ts'
import type { RegistryAccess } from '../../supernode/registry-access.ts'
import type { ImageSource, SourceImage } from './image-source.ts'

export class OwnSource implements ImageSource {
  readonly name = 'own indexer'
  readonly #catalog: ImageCatalog
  readonly #origin: LayerOrigin

  constructor(components: { catalog: ImageCatalog; origin: LayerOrigin }) {
    this.#catalog = components.catalog
    this.#origin = components.origin
  }

  async resolve(request: { reference: string; manifestDigest?: string }): Promise<SourceImage> {
    const resolved: ResolvedImage = await this.#catalog.resolve(request)
    return this.#image(request.reference, resolved.image.manifestDigest, resolved.image.layers, resolved.access)
  }

  async chain(chainId: string): Promise<SourceImage> {
    const { image, layers, access } = await this.#catalog.resolveChain(chainId, 'self')
    const reference = image.references.at(-1)
    if (reference === undefined) throw new SkimmerError('NOT_FOUND', `${chainId}: no reference of the image is known`)
    return this.#image(reference, image.manifestDigest, layers, access)
  }

  /** Makes a layer's blocks here from the registry, whatever is missing of them. NOT_FOUND when the image does not hold the layer any more. */
  async bring(reference: string, diffId: string, signal: AbortSignal): Promise<void> {
    const image = await this.resolve({ reference })
    const position = image.layers.findIndex((layer) => layer.diffId === diffId)
    if (position < 0) throw new SkimmerError('NOT_FOUND', `${reference} does not hold layer ${diffId} any more`)
    await image.index(position, signal)
  }

  #image(reference: string, manifestDigest: string, layers: readonly ImageLayerRecord[], access: RegistryAccess): SourceImage {
    return {
      reference,
      manifestDigest,
      layers,
      trace: undefined,
      index: async (position, signal, onProgress) => {
        const made = await this.#origin.ensureIndexed({ reference: parseReference(reference), layer: layers[position], access }, { signal, onProgress })
        return { diffId: made.diffId, layerDigest: made.digest, layerSize: made.size, index: made.index, reference: formatReference(atDigest(parseReference(reference), manifestDigest)) }
      },
    }
  }
}
