// The supernodes as the source of images: they resolve, index once for the whole datacenter, and know what starts read first.
import type { ControlAnswer } from '../../peer/control.ts'
import type { Supernodes } from '../../peer/supernodes.ts'
import type { CredentialSource, Credentials } from '../../oci/credentials.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { atDigest, formatReference, parseReference } from '../../oci/reference.ts'
import type { ImageSource, SourceImage } from './image-source.ts'

/** A supernode that indexes says that it is alive; this much silence means that it is not. */
const SILENCE_MS = 20_000

type Handed = { username: string; secret: string } | { token: string }

export class SupernodeSource implements ImageSource {
  readonly name = 'supernode'
  readonly #supernodes: Supernodes
  readonly #credentials: CredentialSource

  /** `credentials`: this node's own for registries; they go to the supernode over the encrypted channel, which acts with them for this node only. */
  constructor(components: { supernodes: Supernodes; credentials: CredentialSource }) {
    this.#supernodes = components.supernodes
    this.#credentials = components.credentials
  }

  async resolve(request: { reference: string; manifestDigest?: string }, signal?: AbortSignal): Promise<SourceImage> {
    const credentials = handed(await this.#credentials.get(parseReference(request.reference).registry, { signal }))
    const parsed = parseReference(request.reference)
    const answer = await this.#supernodes.call('image.resolve', { ...request, credentials }, { signal, silenceMs: SILENCE_MS, key: request.reference })
    // Not the tag, which may move while a container still runs on what it meant.
    const pinned = formatReference(atDigest(parsed, answer.manifestDigest))
    return {
      reference: request.reference,
      manifestDigest: answer.manifestDigest,
      layers: answer.layers,
      trace: answer.trace,
      composed: answer.composed,
      index: async (position, signal, onProgress) => {
        const layer = answer.layers[position]
        if (layer.index !== undefined) return { diffId: layer.diffId, layerDigest: layer.digest, layerSize: layer.size, index: layer.index, reference: pinned }
        const made = await this.#supernodes.call(
          'layer.index',
          { reference: request.reference, manifestDigest: answer.manifestDigest, layerDigest: layer.digest, credentials },
          { signal, onProgress, silenceMs: SILENCE_MS, key: request.reference },
        )
        return { diffId: made.diffId, layerDigest: layer.digest, layerSize: layer.size, index: made.index, reference: pinned }
      },
    }
  }

  async chain(chainId: string, signal?: AbortSignal): Promise<SourceImage> {
    const answer: ControlAnswer<'chain.resolve'> = await this.#supernodes.call('chain.resolve', { chainId }, { signal, key: chainId })
    return {
      reference: undefined,
      manifestDigest: undefined,
      layers: answer.layers,
      trace: answer.trace,
      index: async (position) => {
        const { digest, size, diffId, index } = answer.layers[position]
        return { diffId, layerDigest: digest, layerSize: size, index }
      },
    }
  }
}

function handed(credentials: Credentials | undefined): Handed | undefined {
  if (credentials === undefined) return undefined
  if ('username' in credentials) return { username: credentials.username, secret: credentials.password }
  if ('registryToken' in credentials) return { token: credentials.registryToken }
  throw new SkimmerError('UNSUPPORTED', 'identity tokens of `docker login` are not passed on to a supernode: give the supernode credentials of its own, or use a user name and password')
}
