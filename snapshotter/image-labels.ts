// Which image and layer a Prepare is about, read from the labels that CRI and ctr-remote put on it. Everything in them is checked: a label may say anything.

/** The chain ID of the layer that the caller is about to unpack (containerd's client sets it). */
export const TARGET_LABEL = 'containerd.io/snapshot.ref'

const CRI = 'containerd.io/snapshot/cri.'
const STARGZ = 'containerd.io/snapshot/remote/stargz.'
const DIGEST = /^sha256:[0-9a-f]{64}$/
const REFERENCE = /^[\x21-\x7e]{1,1024}$/

export interface ImageLabels {
  readonly reference?: string
  readonly manifestDigest?: string
  readonly layerDigest?: string
  /** This layer and those above it; the list may be cut (labels hold 4 KiB). */
  readonly layerDigests?: readonly string[]
}

export const isDigest = (text: string | undefined): boolean => text !== undefined && DIGEST.test(text)

/** CRI's labels (`cri.image-ref`, `cri.manifest-digest`, `cri.layer-digest`, `cri.image-layers`) win over ctr-remote's (`stargz.reference`, `.digest`, `.layers`). */
export function readImageLabels(labels: Readonly<Record<string, string>>): ImageLabels {
  const label = (name: string): string | undefined => (Object.hasOwn(labels, name) ? labels[name] : undefined)
  const digest = (name: string): string | undefined => (isDigest(label(name)) ? label(name) : undefined)
  const digests = (name: string): string[] | undefined => label(name)?.split(',').filter(isDigest)
  const reference = [label(`${CRI}image-ref`), label(`${STARGZ}reference`)].find(each => each !== undefined && REFERENCE.test(each))
  return {
    reference,
    manifestDigest: digest(`${CRI}manifest-digest`),
    layerDigest: digest(`${CRI}layer-digest`) ?? digest(`${STARGZ}digest`),
    layerDigests: digests(`${CRI}image-layers`) ?? digests(`${STARGZ}layers`),
  }
}
